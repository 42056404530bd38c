"""What moved a word towards a sense, against contributions and the states themselves."""

import pytest
import tiny_models
import torch

from saccade.adapters import pretrained
from saccade.analysis import contributions, senses
from saccade.errors import ArgumentError

SENTENCES = {
    "money": ["He left the bank.", "She left a bank by it."],
    "river": ["The river by the banks.", "It left the river bank and the bank."],
    None: ["The bank."],
}


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def found(request, tmp_path_factory):
    folder = tiny_models.save(tmp_path_factory.mktemp("movers") / "tiny", request.param)
    return senses(pretrained.load(str(folder)), "bank", SENTENCES)


def direction(found, occurrence, sense, layer):
    """From the mean of the other senses' centres to this one's, the occurrence's sentence left out."""
    own = found.occurrences[occurrence].sentence
    centres = {
        name: torch.stack(
            [
                found.vectors[i, layer + 1]
                for i, other in enumerate(found.occurrences)
                if found.sense_of(i) == name and other.sentence != own
            ]
        ).mean(0)
        for name in found.senses
    }
    others = torch.stack([centre for name, centre in centres.items() if name != sense]).mean(0)
    return (centres[sense] - others) / (centres[sense] - others).norm()


@pytest.mark.parametrize("occurrence", [0, 2, 5])
@pytest.mark.parametrize("sense", ["money", "river"])
def test_movers_are_contributions_along_the_direction(found, occurrence, sense):
    moved = found.movers(occurrence, sense)
    where = found.occurrences[occurrence]
    sentence = found.sentences[where.sentence]
    for layer in range(len(moved.mlp)):
        along = direction(found, occurrence, sense, layer)
        taken = [
            contributions(found.trace, layer, token, model=found.reader.model, entry=sentence.entry, batch=sentence.row)
            for token in where.tokens
        ]
        by_key = torch.stack([c.project(along)[0] for c in taken]).mean(0)
        torch.testing.assert_close(moved.along[layer].sum(-1), by_key.sum(-1), atol=1e-4, rtol=1e-3)
        word = moved.words.index("left") if "left" in moved.words else 1
        assert moved.along.shape[2] == len(moved.words)
        mlp = torch.stack([c.part("mlp") @ along for c in taken]).mean()
        torch.testing.assert_close(moved.mlp[layer], mlp, atol=1e-4, rtol=1e-3)
        lies = found.vectors[occurrence, layer + 1] @ along
        torch.testing.assert_close(moved.after[layer], lies, atol=1e-4, rtol=1e-3)
        assert moved.along[layer, :, word].isfinite().all()


def test_of_a_word_of_several_subwords_all_tokens_count(found):
    plural = next(i for i, where in enumerate(found.occurrences) if len(where.tokens) > 1)
    moved = found.movers(plural)
    assert moved.words[moved.own[0]] == "banks"
    assert all(mover.word != "banks" and mover.along > 0 for mover in moved.strongest(4))
    assert moved.strongest(1)[0].along == pytest.approx(
        float(moved.along.index_fill(2, torch.tensor(moved.own), 0).max())
    )


def test_names_and_what_does_not_fit(found, tmp_path):
    assert found.movers("? 1").sense == found.nearest(len(found.occurrences) - 1)
    assert found.movers("money 1").sense == "money"
    for arguments, message in [
        (("money 9",), r"no occurrence 'money 9'; there are money 1"),
        ((99,), "no occurrence 99"),
        ((0, "sea"), r"sense = 'sea': expected one of two or more, and there are money, river"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            found.movers(*arguments)
    pytest.importorskip("matplotlib")
    assert found.movers(0).save(tmp_path / "moved.png") == []
    assert [len(moved) <= 3 for moved in found.moved_most] == [True] * len(found.occurrences)
