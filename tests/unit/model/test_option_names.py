"""The names of options: ours and transformers', right in meaning; what cannot be meant is one line."""

import pytest

from nanocaption.model.options import Asked, Options, asked

SEARCH = Options(beam_size=3)


@pytest.mark.parametrize("given, expected", [
    ({}, Asked(SEARCH, None, None)),
    ({"num_beams": 5}, Asked(Options(5), None, None)),
    ({"num_beams": 5, "beam_size": 5}, Asked(Options(5), None, None)),
    ({"num_beams": 4, "num_return_sequences": 2}, Asked(Options(4), 2, None)),
    ({"max_new_tokens": 7, "min_new_tokens": 2}, Asked(SEARCH._replace(max_length=7, min_length=2), None, None)),
    ({"no_repeat_ngram_size": 3, "num_beam_groups": 3},
     Asked(Options(3, no_repeat_ngram=3, beam_groups=3), None, None)),
    ({"do_sample": True}, Asked(SEARCH._replace(samples=1), None, None)),
    ({"do_sample": True, "num_return_sequences": 4, "temperature": 1, "top_k": 9, "top_p": 0.5, "seed": 3},
     Asked(SEARCH._replace(samples=4, temperature=1.0, top_k=9, top_p=0.5), 4, 3)),
    ({"do_sample": True, "num_beams": 1}, Asked(Options(1, samples=1), None, None)),
    ({"do_sample": False, "num_beams": 2}, Asked(Options(2), None, None)),
    ({"samples": 4, "do_sample": True}, Asked(SEARCH._replace(samples=4), None, None)),
])  # fmt: skip
def test_names_mean_what_they_mean_elsewhere(given, expected):
    assert asked(given, SEARCH) == expected


@pytest.mark.parametrize("given, told", [
    ({"num_beam": 3}, "num_beam is no option; did you mean num_beams?"),
    ({"temprature": 0.5}, "did you mean temperature?"),
    ({"qqq": 1}, "qqq is no option. There are: beam_size,"),
    ({"num_beams": 3, "beam_size": 4}, "num_beams = 3 and beam_size = 4 are one thing"),
    ({"max_new_tokens": 3, "max_length": 4}, "are one thing"),
    ({"num_return_sequences": 4}, "num_return_sequences = 4 is more than num_beams = 3"),
    ({"num_beams": 1, "num_return_sequences": 2}, "or draw them with do_sample=True"),
    ({"samples": 2, "num_return_sequences": 3}, "is more than samples = 2"),
    ({"num_return_sequences": 0}, "must be 1 or more"),
    ({"max_new_tokens": 0}, "must be 1 or more"),
    ({"do_sample": True, "num_beams": 3}, "num_beams = 3 searches, do_sample = True draws"),
    ({"do_sample": False, "samples": 3}, "samples = 3 asks for random captions and do_sample = False for none"),
    ({"do_sample": True, "samples": 0}, "samples = 0 asks for no random captions"),
    ({"num_beams": 2.5}, "num_beams = 2.5: must be a whole number"),
    ({"num_beams": "3"}, "num_beams = '3': must be a whole number"),
    ({"num_beams": True}, "num_beams = True: must be a number"),
    ({"temperature": None}, "temperature = None: must be a number"),
    ({"do_sample": "yes"}, "do_sample = 'yes': must be True or False"),
])  # fmt: skip
def test_what_cannot_be_meant_is_one_line(given, told):
    with pytest.raises(ValueError) as caught:
        asked(given, SEARCH)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_temperature_without_random_captions_is_warned_of():
    with pytest.warns(UserWarning, match="temperature: of random captions alone"):
        assert asked({"temperature": 0.5}, SEARCH).options.beam_size == 3
