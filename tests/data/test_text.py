import pytest
import torch

from ivedit.data.text import TextStates


def _texts(lengths: list[int], padded: int = 5) -> TextStates:
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    return TextStates(torch.randn(len(lengths), padded, 3) * mask[..., None], mask)


def test_selecting_always_keeps_the_batch_dimension():
    texts = _texts([1, 5, 3])
    assert len(texts) == 3 and texts.lengths.tolist() == [1, 5, 3]
    for index in (1, [1], slice(1, 2), torch.tensor([1]), torch.tensor([False, True, False])):
        assert torch.equal(texts[index].states, texts.states[1:2])
        assert texts[index].mask.shape == (1, 5)
    assert torch.equal(texts[-1].states, texts.states[2:])
    with pytest.raises(IndexError):
        texts[3]


def test_joining_pads_shorter_texts_with_zeros():
    short, long = _texts([2], padded=2), _texts([4, 1], padded=6)
    both = TextStates.cat([short, long])
    assert both.states.shape == (3, 6, 3) and both.lengths.tolist() == [2, 4, 1]
    assert not both.states[0, 2:].any()
    with pytest.raises(ValueError, match="cannot pad"):
        long.pad_to(3)
    with pytest.raises(ValueError, match="at least one"):
        TextStates.cat([])


def test_repeating_keeps_copies_of_a_text_together():
    texts = _texts([1, 2])
    assert texts.repeat_interleave(3).lengths.tolist() == [1, 1, 1, 2, 2, 2]


def test_moving_changes_the_type_of_the_states_only():
    moved = _texts([1]).to("cpu", torch.bfloat16)
    assert moved.states.dtype == torch.bfloat16 and moved.mask.dtype == torch.bool
    assert moved.device.type == "cpu"


@pytest.mark.parametrize(
    ("states", "mask", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), "must be"),
        (torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), "mask must be"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "bool"),
    ],
)
def test_states_and_mask_that_do_not_belong_together_are_refused(states, mask, message):
    with pytest.raises(ValueError, match=message):
        TextStates(states, mask)
