"""Roles: what a reader, a packager and an approver may do on an MLflow server with basic auth."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from made_proofs import ALIAS, log_variant, publish
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from mlflow_server import running_guarded_mlflow_server
from postgres import running_postgres

from slmpack.errors import PublishError
from slmpack.log.ask import load_model
from slmpack.log.experiment import EXPERIMENT
from slmpack.log.tags import PUBLISHED
from slmpack.publish.promote import plan_promotion, promote
from slmpack.publish.publish import mark_refused
from slmpack.publish.rollback import read_version
from slmpack.records import Package

pytestmark = pytest.mark.slow

NAME = "guarded"
USERS = ("reader", "packager", "approver")
ADMIN = "admin"


@dataclass(frozen=True)
class Site:
    """A server, and the password of each user."""

    address: str
    passwords: dict[str, str]

    @contextmanager
    def as_user(self, user: str) -> Iterator[MlflowClient]:
        """Have this process be that user meanwhile."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", user)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", self.passwords[user])
            patch.setenv("MLFLOW_TRACKING_URI", self.address)
            mlflow.set_tracking_uri(self.address)
            yield MlflowClient()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_package: Package, workspace: Path) -> Iterator[Site]:
    """A server with one published version, and users with the permissions that docs/operations.md gives them."""
    folder = tmp_path_factory.mktemp("guarded")
    with running_postgres(folder) as postgres, running_guarded_mlflow_server(folder, postgres) as server:
        site = Site(server.address, {user: secrets.token_hex(16) for user in USERS} | {ADMIN: server.password})
        with site.as_user(ADMIN) as client:
            users = get_app_client("basic-auth", server.address)
            for user in USERS:
                users.create_user(user, site.passwords[user])
            publish(log_variant(tiny_package, "first", NAME, workspace))
            experiment = client.get_experiment_by_name(EXPERIMENT)
            assert experiment is not None
            for user in ("packager", "approver"):
                users.grant_user_permission(user, "registered_model", NAME, "EDIT")
            users.grant_user_permission("packager", "experiment", experiment.experiment_id, "EDIT")
        yield site


def test_a_reader_loads_and_can_neither_publish_nor_move_an_alias(
    site: Site, tiny_package: Package, workspace: Path
) -> None:
    with site.as_user("reader") as client:
        assert load_model(f"models:/{NAME}@{ALIAS}")
        with pytest.raises(MlflowException, match=r"(?i)permission"):
            client.set_registered_model_alias(NAME, ALIAS, "1")
        with pytest.raises(PublishError, match=r"(?i)permission"):
            promote(plan_promotion(NAME, ALIAS, "production"), "reader")
        with pytest.raises(Exception, match=r"(?i)permission"):
            log_variant(tiny_package, "reader's", NAME, workspace)
        assert "production" not in client.get_registered_model(NAME).aliases


def test_a_packager_publishes_and_cannot_delete(
    site: Site, tiny_package: Package, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with site.as_user("packager") as client:
        published = publish(log_variant(tiny_package, "second", NAME, workspace))
        assert (published.version, client.get_model_version_by_alias(NAME, ALIAS).version) == (2, "2")
        refused = log_variant(tiny_package, "third", NAME, workspace)
        mark_refused(refused, "it did not answer")
        assert publish(refused).version == 3  # and is not refused any more
        assert not client.get_logged_model(refused.model_id).tags["slmpack.refused"]
        again = log_variant(tiny_package, "third", NAME, workspace)
        tags = {key: tag for key, tag in client.get_model_version(NAME, "3").tags.items() if key != PUBLISHED}
        loser = client.create_model_version(NAME, again.uri, tags=tags, model_id=again.model_id)
        assert publish(again).version == 3  # although the one that came later may not be taken away
        assert PUBLISHED not in client.get_model_version(NAME, loser.version).tags
        assert f"{NAME} version {loser.version} stays, not published: this user may not delete it" in caplog.text
        for delete in (
            lambda: client.delete_registered_model(NAME),
            lambda: client.delete_model_version(NAME, "1"),
            lambda: client.delete_logged_model(client.get_model_version(NAME, "1").tags["slmpack.model_id"]),
        ):
            with pytest.raises(MlflowException, match=r"(?i)permission"):
                delete()


def test_an_approver_moves_production_and_cannot_publish(site: Site, tiny_package: Package, workspace: Path) -> None:
    with site.as_user("approver") as client:
        assert promote(plan_promotion(NAME, ALIAS, "production"), "Ada").status == "promoted"
        assert client.get_model_version_by_alias(NAME, "production").version in {"1", "3"}
        assert read_version(NAME, 1)
        with pytest.raises(Exception, match=r"(?i)permission"):
            log_variant(tiny_package, "third", NAME, workspace)
