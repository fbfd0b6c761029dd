"""What ``allow`` and ``allow_private`` may say and mean: pure functions, nothing is resolved or connected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.egress_host import SETTINGS
from vm_kernel.config import load_config
from vm_kernel.egress_rules import Rules, name_of
from vm_kernel.errors import ConfigError
from vm_kernel.guest.egress_dial import Refused, reach

#: an entry, and what the error must tell the user
WRONG = {
    "https://pypi.org/simple": "write the name alone",
    "pypi.org/": "write the name alone",
    "10.0.0.1": "an IP address is no name",
    "10.0.0.1:443": "an IP address is no name",
    "::1": "an IP address is no name",
    "[::1]:443": "an IP address is no name",
    "127.1": "this is no name",
    "0x7f.1": "this is no name",
    "2130706433": "this is no name",
    "*": "'*' can only stand at the beginning",
    "*.": "this is no name",
    "*.*.org": "'*' can only stand at the beginning",
    "py*.org": "'*' can only stand at the beginning",
    "*pypi.org": "'*' can only stand at the beginning",
    "pypi.org:": "its port must be a number",
    "pypi.org:0": "its port must be a number",
    "pypi.org:65536": "its port must be a number",
    "pypi.org:https": "its port must be a number",
    "pypi.org:1:2": "its port must be a number",
    "pypi..org": "this is no name",
    "-a.org": "this is no name",
    "a b.org": "this is no name",
    "": "this is no name",
    "a" * 64 + ".org": "this is no name",
    "bücher.example": "xn--bcher-kva.example",
    7: "is no text",
}
NOT_REACHED = [
    *("127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "255.255.255.255"),
    *("169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1", "240.0.0.1"),
    *("192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
    *("::", "::1", "::10.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "64:ff9b:1::1"),
    *("2002:0a00:0001::1", "2002:808:808::1", "2001::1", "2001:db8::1", "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1"),
    *("fd00:ec2::254", "fd20:ce::254", "ff02::1", "100::1", "no address", ""),
]


def test_names_and_ports_mean_what_they_say() -> None:
    rules = Rules(["PyPI.org", "*.example.org:8443", "_x.intranet"])
    permitted = {("pypi.org", 443), ("pypi.org", 80), ("a.example.org", 8443), ("b.a.example.org", 8443)}
    permitted |= {("_x.intranet", 80)}
    refused = {("pypi.org", 8080), ("a.pypi.org", 443), ("example.org", 8443), ("a.example.org", 443)}
    refused |= {("badexample.org", 8443), ("pypi.org.evil.com", 443), ("evilpypi.org", 443), ("", 443)}
    assert {wanted for wanted in permitted | refused if rules.permits(*wanted)} == permitted
    assert not Rules().permits("pypi.org", 443)
    assert name_of("PyPI.org.") == "pypi.org"
    assert [name_of(host) for host in ("127.0.0.1", "0x7f000001", "::1", "a/b", "a\0", "a" * 300, "ı.org")] == [
        None
    ] * 7


@pytest.mark.parametrize(("entry", "told"), WRONG.items(), ids=map(ascii, WRONG))
def test_what_is_no_entry_is_refused_with_what_to_write(entry: object, told: str) -> None:
    with pytest.raises(ValueError, match="^" + repr(entry)[:10].replace("*", r"\*").replace("[", r"\[")) as caught:
        Rules([entry])  # type: ignore[list-item]
    assert told in str(caught.value)


@pytest.mark.parametrize("address", NOT_REACHED)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert Rules(["pypi.org"]).refusal(address)


def test_public_addresses_are_not() -> None:
    assert [Rules().refusal(address) for address in ("8.8.8.8", "151.101.0.223", "2a04:4e42::223")] == [""] * 3


def test_private_networks_can_be_permitted_but_never_metadata() -> None:
    rules = Rules([], ["127.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/8", "100.64.0.0/10"])
    assert [rules.refusal(address) for address in ("127.0.0.1", "10.9.9.9", "::1", "fd12::1", "100.64.0.1")] == [""] * 5
    for address in ("127.0.0.2", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "::ffff:10.0.0.1"):
        assert rules.refusal(address)
    for network in ("169.254.0.0/16", "fe80::/10", "10.0.0.1/8", "intranet", "::ffff:0:0/96", "224.0.0.0/4", 10):
        with pytest.raises(ValueError, match=r"cannot be allowed|write "):
            Rules([], [network])  # type: ignore[list-item]


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fe80::1%lo"])
def test_a_listed_name_that_leads_there_is_refused(address: str) -> None:
    found = reach("pypi.org", 443, Rules(["pypi.org"]), lookup=lambda *_: [address])
    assert isinstance(found, Refused)
    assert found.status == 403
    assert f"pypi.org leads to {address}" in found.text


def test_a_name_is_looked_up_once_and_only_checked_addresses_are_tried() -> None:
    """An answer that changes between check and use would be DNS rebinding."""
    lookups = []

    def lookup(name: str, port: int) -> list[str]:
        lookups.append((name, port))
        return ["169.254.169.254", "10.0.0.1"]

    assert isinstance(reach("PyPI.org.", 443, Rules(["pypi.org"]), lookup), Refused)
    assert lookups == [("pypi.org", 443)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("c.PoolConfig.allow = ['https://pypi.org']", "allow: 'https://pypi.org': write the name alone"),
        ("c.PoolConfig.allow = 'pypi.org, numpy.org'", "this is no name"),
        ("c.PoolConfig.allow = 7", "list"),
        ("c.PoolConfig.profiles = {'mine': {'allow': ['10.0.0.1']}}", "Profile 'mine': allow: '10.0.0.1'"),
        ("c.PoolConfig.profiles = {'mine': {'allow_private': ['169.254.169.254/32']}}", "metadata"),
    ],
)
def test_a_wrong_setting_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, told: str
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    (tmp_path / "vm_kernel_config.py").write_text(line)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert told in caught.value.message
    assert caught.value.hint


def test_profiles_have_their_own_and_nothing_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    (tmp_path / "vm_kernel_config.py").write_text(
        "c.PoolConfig.profiles = {'mine': {'allow': ('pypi.org',)}}; c.PoolConfig.egress_max_mib = 7"
    )
    config = load_config().pool
    assert config.egress(config.profile("default")) is None
    found = config.egress(config.profile("mine"))
    assert found is not None
    assert (found.allow, found.allow_private, found.max_mib) == (["pypi.org"], [], 7)
    assert found._asdict().keys() == SETTINGS.keys()
