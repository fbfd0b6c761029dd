#!/bin/bash
# once-more.sh STATUS OPTION...: what `make test` does when pytest has ended with STATUS. A few tests that have failed beside others, on a busy machine without KVM,
# are run once more by themselves. They are named, and what they said is above: one that passes here is late or has a race, and is to be looked into.
set -euo pipefail
cd "$(dirname "$0")/.."
FEW=5
status=$1
shift
[ "$status" = 1 ] || exit "$status"
names=$(.venv/bin/python -c 'import json; print(*json.load(open("build/pytest/v/cache/lastfailed")), sep="\n")')
echo "== failed beside others:"
echo "$names"
if [ "$(wc -l <<<"$names")" -gt $FEW ]; then
    echo "== more than $FEW: nothing is repeated"
    exit 1
fi
echo "== once more, by themselves:"
exec .venv/bin/pytest "$@" --last-failed
