import json

from search.deployment.prediction_writers import as_json, csv_writer, json_writer, table_writer
from search.deployment.predictor import Prediction
from trainables.images import ImageError


def test_csv_of_predictions_and_errors(capsys):
    write = csv_writer(1)
    write(Prediction("a.jpg", ("red",), (0.9,), 3.5))
    write(Prediction("b.jpg", ("red",), (0.9,)))
    write(ImageError("c.jpg", "is empty (zero bytes)"))
    write(ImageError("=d.jpg", "=d.jpg is empty"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "a.jpg,red,0.900000,3.5000,1,",
        "b.jpg,red,0.900000,,,",
        "c.jpg,,,,,is empty (zero bytes)",
        "=d.jpg,,,,,'=d.jpg is empty",
    ]


def test_an_image_out_of_distribution_is_marked(capsys):
    known = Prediction("a.jpg", ("red",), (0.9,), 0.25)
    strange = Prediction("b.jpg", ("red",), (0.9,), 3.5)
    write = table_writer(5)
    for one in (known, strange):
        write(one)
    assert capsys.readouterr().out.splitlines() == [
        "a.jpg  red 0.9000",
        "b.jpg  red 0.9000   out of distribution",
    ]
    assert as_json(strange)["is_ood"] is True
    assert as_json(known) == {
        "image": "a.jpg",
        "classes": [{"class": "red", "probability": 0.9}],
        "ood_score": 0.25,
        "is_ood": False,
    }
    assert "ood_score" not in as_json(Prediction("c.jpg", ("red",), (0.9,)))


def test_a_name_reaches_the_terminal_escaped_and_json_as_it_is(capsys):
    odd = Prediction("a\x1b[31m\nb.jpg", ("re\x1bd",), (0.9,))
    table_writer(5)(odd)
    table_writer(5)(ImageError("\x1b.jpg", "is \x1b"))
    out, err = capsys.readouterr()
    assert out == "a\\x1b[31m\\nb.jpg  re\\x1bd 0.9000\n"
    assert err == "\\x1b.jpg  cannot be read: is \\x1b\n"
    write = json_writer()
    write(odd)
    write(None)
    out = capsys.readouterr().out
    assert json.loads(out)[0]["image"] == odd.image
    assert "\x1b" not in out


def test_json_of_no_image(capsys):
    json_writer()(None)
    assert json.loads(capsys.readouterr().out) == []
