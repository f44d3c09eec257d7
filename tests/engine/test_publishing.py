"""A report says the same as text, as JSON and as a page, and never claims what is not so."""

import json
from html.parser import HTMLParser

import pytest
from dpcheck.engine.publishing import SCHEMA, Statement, rendered
from white_box import make, records, released

from dpcheck.errors import DpcheckError


class Page(HTMLParser):
    """The text of a page, its tags, and what it would fetch."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.fetched, self.open, self.text = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_all_formats_say_the_same():
    engine = make(records(40), expected_batch_size=4, steps=9)
    released(engine, 5)
    text, page, document = engine.report(), Page(engine.report("html")), json.loads(engine.report("json"))
    assert page.open == [] and page.fetched == []
    assert not {"script", "link", "img"} & set(page.tags)
    shown = "".join(page.text)
    claim, *lines = text.splitlines()
    assert claim == document["claim"] and claim in shown
    for line, (title, sentence) in zip(lines, document["sentences"].items(), strict=True):
        assert line == f"{title}: {sentence}"
        assert title in page.text and sentence in page.text
    for title in (
        "Epsilon", "Unit and adjacency", "Setting", "Mechanism", "Sampling", "Steps", "Randomness", "Not accounted for"
    ):  # fmt: skip
        assert title in document["sentences"]


def test_the_values_are_those_of_the_run():
    engine = make(records(40), expected_batch_size=4, steps=9, noise_multiplier=1.3, max_grad_norm=0.5)
    released(engine, 5)
    document = json.loads(engine.report("json"))
    bounds = engine.epsilon()
    assert (document["schema"], document["guaranteed"], document["delta"]) == (SCHEMA, True, 1e-3)
    assert document["epsilon"] == {"lower": bounds.lower, "upper": bounds.upper}
    assert document["accountant"] == bounds.method
    assert document["adjacency"] == "add-remove"
    assert document["unit"] == {"is": "record", "largest_number_of_records": None}
    assert document["sampling"] == {"is": "poisson", "dataset_size": 40, "expected_batch_size": 4, "rate": 0.1}
    mechanism = document["mechanism"]
    assert (mechanism["noise_multiplier"], mechanism["max_grad_norm"], mechanism["divisor"]) == (1.3, 0.5, 4)
    assert document["steps"] == {"planned": 9, "of_this_run": 5, "in_the_ledger": 5}
    ((phase),) = document["phases"]
    assert (phase["noise_multiplier"], phase["sample_rate"], phase["steps"]) == (1.3, 0.1, 5)


@pytest.mark.parametrize("how", [{"seed": 3}, {"noise_multiplier": 0}, {"seed": 3, "noise_multiplier": 0}])
def test_without_a_guarantee_none_is_stated(how):
    engine = make(records(), **how)
    released(engine)
    document = json.loads(engine.report("json"))
    assert (document["guaranteed"], document["epsilon"]["upper"]) == (False, "inf")
    assert document["claim"].startswith("No guarantee")
    assert any("NOT PRIVATE" in note for note in document["notes"])
    page = engine.report("html")
    assert "No guarantee" in page and "NOT PRIVATE" in page and "-differential privacy." not in page
    if "seed" in how:
        assert "Epsilon: none" in engine.report()


def test_steps_of_a_seeded_run_in_the_ledger_spoil_the_claim(tmp_path):
    path = tmp_path / "ledger.jsonl"
    released(make(records(), seed=1, ledger=path))
    engine = make(records(), ledger=path)
    released(engine)
    assert json.loads(engine.report("json"))["guaranteed"] is False


def test_what_is_written_cannot_change_the_page():
    odd = Statement("<b>1 & 2</b>", True, ('<script>"',), (("a<", "</td>"),), {})
    page = Page(rendered(odd, "html"))
    assert "b" not in page.tags and "script" not in page.tags and page.open == []
    assert {"<b>1 & 2</b>", '<script>"', "a<", "</td>"} <= set(page.text)


def test_another_format_is_refused_by_name():
    with pytest.raises(DpcheckError, match="format='pdf'") as raised:
        make(records()).report("pdf")
    assert "'html'" in raised.value.next
