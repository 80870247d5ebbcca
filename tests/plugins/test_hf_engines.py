"""Engines that shard a model, or under which nothing can be measured: told apart, and said by name."""

from types import SimpleNamespace

import hf_tiny as tiny
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from headdynamics.plugins.hf_engines import check_engine, sharded
from headdynamics.plugins.hf_whole import Kept, Whole
from hf_ranks import own_environment
from transformers.training_args import ParallelMode

from headdynamics.heads import HeadsError


@pytest.fixture
def engine(tmp_path):
    """`engine(kind, ...)`: what accelerate says, from now on, of the engine of a Trainer that there is."""
    tiny.trainer(tmp_path)
    states = [AcceleratorState._shared_state, PartialState._shared_state]
    before = [dict(state) for state in states]

    def say(kind, **more):
        for state in states:
            state.update(distributed_type=kind, **more)

    yield say
    for state, values in zip(states, before, strict=True):
        state.clear()
        state.update(values)


def split(**sizes):
    return {"parallelism_config": SimpleNamespace(**sizes)}


@pytest.mark.parametrize(
    ("kind", "args", "model", "name"),
    [
        (DistributedType.XLA, {}, {}, "TPU/XLA"),
        (None, {"parallel_mode": ParallelMode.TPU}, {}, "TPU/XLA"),
        (None, {"fsdp": True, "fsdp_config": {"xla": True}}, {}, "TPU/XLA"),
        (None, {"parallel_mode": ParallelMode.SAGEMAKER_MODEL_PARALLEL}, {}, "SageMaker's model parallelism"),
        (DistributedType.MEGATRON_LM, {}, {}, "Megatron-LM"),
        (None, {}, {"_tp_size": 2}, "tensor parallelism"),
        (None, split(tp_size=2), {}, "tensor parallelism"),
        (
            None,
            {"hf_deepspeed_config": SimpleNamespace(config={"tensor_parallel": {"autotp_size": 2}})},
            {},
            "tensor parallelism",
        ),
        (None, split(tp_size=1, cp_size=2), {}, "context parallelism"),
        (None, split(sp_size=4), {}, "sequence parallelism"),
        (None, {}, {"is_distributed_loading_by_transformers": True}, "a model that from_pretrained has sharded"),
    ],
)
def test_what_cannot_work_is_refused_by_name(engine, kind, args, model, name):
    plain = SimpleNamespace(**{"fsdp": False, "fsdp_config": None, "parallel_mode": ParallelMode.DISTRIBUTED})
    check_engine(SimpleNamespace(_tp_size=None), plain)
    engine(kind or DistributedType.MULTI_GPU)
    with pytest.raises(HeadsError, match=name):
        check_engine(SimpleNamespace(**model), SimpleNamespace(**vars(plain) | args))


def test_a_training_under_a_refused_engine_goes_on_and_says_so(tmp_path, caplog):
    made = tiny.trainer(tmp_path / "out", ("attach", tmp_path / "run.h5", tiny.QUIET | {"strict": False}))
    made.args.parallelism_config = SimpleNamespace(cp_size=2)
    made.train()
    (said,) = [r.getMessage() for r in caplog.records if r.name == "headdynamics" and r.levelname == "ERROR"]
    assert said.startswith("headdynamics is off: context parallelism is not supported: no process")
    assert made.state.global_step == 10 and not (tmp_path / "run.h5").exists()


def test_what_shards_is_what_trains_and_not_what_was_asked_for(engine):
    assert sharded() == ""
    engine(DistributedType.FSDP)
    assert sharded() == "FSDP"
    for stage, name in ((2, ""), (3, "DeepSpeed ZeRO 3")):
        plugin = SimpleNamespace(zero_stage=stage, selected=True)
        engine(DistributedType.DEEPSPEED, deepspeed_plugins={"one": plugin})
        assert sharded() == name


def test_a_model_that_was_not_seen_before_it_was_sharded_is_refused(engine):
    engine(DistributedType.FSDP)
    with pytest.raises(HeadsError, match="FSDP had sharded the model before headdynamics saw it: use headdynamics.att"):
        Kept().unsharded(tiny.bert())
    kept, model = Kept(), tiny.bert()
    model.stream = (i for i in range(3))  # no generator can be copied
    kept.keep(model)
    with pytest.raises(HeadsError, match="no copy can be made of the model that FSDP shards: .*generator"):
        kept.unsharded(model)


def outputs(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 11).view(2, 4)).logits


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2], ids=["bert", "tied weights"])
def test_a_whole_copy_has_weights_only_while_it_is_measured(engine, make):
    """Those that the model has then; tied ones are one, there as here."""
    model = make()
    whole = Whole(model, "FSDP")
    assert all(p.is_meta for p in whole.model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    expected = outputs(model)
    with pytest.raises(KeyError), whole.filled(model) as copy:
        assert copy is whole.model and torch.equal(outputs(copy), expected)
        assert [n for n, _ in copy.named_parameters()] == [n for n, _ in model.named_parameters()]
        assert not {id(p) for p in copy.parameters()} & {id(p) for p in model.parameters()}
        raise KeyError("within")
    assert all(p.is_meta for p in whole.model.parameters())
    assert [n for n, _ in whole.model.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert torch.equal(outputs(model), expected)


def test_a_whole_copy_computes_in_the_trainings_precision(tmp_path):
    with own_environment():
        made = tiny.trainer(tmp_path, bf16=True)
    model, batch = made.model, {"input_ids": torch.arange(3, 11).view(2, 4)}
    with Whole(model, "FSDP").filled(model) as copy, torch.no_grad():
        found = copy.eval()(**batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            expected = model.eval()(**batch).logits
        assert found.dtype == torch.float32 and torch.equal(found, expected.float())
        assert not torch.equal(found, model(**batch).logits)
