"""Keys: what makes a result another one is in the key that it is found again by."""

from slmpack.chats.dataset import ChatData, DataPolicy
from slmpack.publish.request import check_request
from slmpack.records import Interface, ModelSource, QualityPolicy, Recipe, SourceKind, Target
from slmpack.retrain.evaluate import RetrainPolicy, retrain_key
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.fetch import snapshot_key

WHEEL = ModelSource(
    text="pypi://a==1/small.gguf", kind=SourceKind.WHEEL, location="a==1", revision="1", member="small.gguf", name="a"
)
DATA = ChatData(
    name="chats.jsonl", files=(), digest="1" * 64, training_digest="2" * 64, held_out_digest="3" * 64, lines=300,
    chats=300, held_out=30, bad=0, duplicates=0, mended=0, first_bad=(), policy=DataPolicy(),
)  # fmt: skip


def test_two_files_of_a_wheel_are_two_snapshots() -> None:
    other = WHEEL.model_copy(update={"member": "large.gguf"})
    later = WHEEL.model_copy(update={"location": "a==2", "revision": "2"})
    assert len({snapshot_key(source) for source in (WHEEL, other, later)}) == 3
    assert snapshot_key(WHEEL.model_copy(update={"text": "as it was typed"})) == snapshot_key(WHEEL)


def test_a_retraining_is_known_by_base_data_settings_and_both_policies() -> None:
    def key(
        base: ModelSource = WHEEL, data: ChatData = DATA, seed: int = 0, policy: RetrainPolicy = RetrainPolicy()  # noqa: B008 - frozen
    ) -> str:  # fmt: skip
        return retrain_key(base, data, TrainSettings(seed=seed), policy)

    strict = DATA.model_copy(update={"policy": DataPolicy(max_bad_share=0.0)})
    others = [
        key(WHEEL.model_copy(update={"member": "large.gguf"})), key(data=DATA.model_copy(update={"digest": "4" * 64})),
        key(data=strict), key(seed=1), key(policy=RetrainPolicy(min_gain=0.5)),
        key(policy=RetrainPolicy(max_forgetting=1.0)),
    ]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)
    assert key(data=DATA.model_copy(update={"name": "another name"})) == key()


def test_a_waiver_counts_for_the_last_recipe_alone() -> None:
    request = check_request(
        Target.CPU_INT4, Recipe.AUTO, Interface.CHAT, None, None, policy=QualityPolicy(), quality_text=None,
        waive_quality="a demonstration",
    )  # fmt: skip
    *others, last = request.ladder
    assert others
    assert {request.waiver_for(recipe) for recipe in others} == {None}
    assert request.waiver_for(last) == "a demonstration"
