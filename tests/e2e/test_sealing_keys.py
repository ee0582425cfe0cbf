"""The keys that secrets are sealed with, as an operator changes and loses them."""

from collections.abc import Callable

from tests.e2e.processes import Installation


def test_keys_are_changed_and_a_lost_one_is_told(install: Callable[..., Installation]) -> None:
    installation = install()
    with installation.serving("--api-only") as server:
        made = server.client().webhooks.create(
            name="a", url="https://receiver.example/", event_types=["fine_tuning.job.failed"]
        )
    file = installation.data / "secret.key"
    old = installation.settings.get("HONE_SECRET_KEYS") or file.read_text().strip()
    assert file.exists() == ("HONE_SECRET_KEYS" not in installation.settings)
    file.unlink(missing_ok=True)

    def with_keys(keys: str) -> Installation:
        return Installation(installation.data, installation.settings | {"HONE_SECRET_KEYS": keys}, installation.history)

    new = installation.hone("secrets", "new-key").stdout.strip()
    lost = with_keys(new)
    assert "1 of which no key opens" in lost.hone("doctor").stdout
    refused = lost.hone("secrets", "rotate")
    assert (refused.returncode, "Those of 1 cannot be read with any key" in refused.stdout) == (1, True)
    with lost.serving("--api-only") as server:
        assert "The secrets of 1 of 1 webhook endpoints cannot be read" in server.output.read_text()
        assert server.client().webhooks.retrieve(made.id).signing_secret_hint == made.signing_secret_hint

    rotated = with_keys(f"{new},{old}").hone("secrets", "rotate")
    assert (rotated.returncode, "1 were sealed anew" in rotated.stdout) == (0, True)
    assert "those of 1 webhook endpoints, which can be read" in with_keys(new).hone("doctor").stdout
    wrong = with_keys(f"{new},{old[:-3]}").hone("secrets", "rotate")
    assert wrong.returncode == 1
    assert "`hone secrets new-key` makes one" in wrong.stdout
    assert old[:-3] not in wrong.stdout + wrong.stderr
    assert not file.exists()
