"""`ragserve up` and what asks it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil
import pytest

from ragserve_cli.plan import DEFAULT_PORTS
from tests.cli.conftest import Assets, Cli, Up

QUESTION = "who was born in the old city?"


def ask(cli: Cli, target: str, *arguments: object) -> dict[str, object]:
    found = cli("ask", QUESTION, "--target", target, "--json", *arguments)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_json_has_what_programs_need(cli: Cli, target: str) -> None:
    body = ask(cli, target, "--docs", 3, "--beams", 2, "--returns", 2)
    assert {"answer", "log_prob", "token_ids", "hypotheses", "passages", "token_posteriors"} <= body.keys()
    assert {"timings_seconds", "knowledge_version"} <= body.keys()
    assert len(body["hypotheses"]) == 2
    assert body["answer"] == body["hypotheses"][0]["text"]
    assert len(body["token_posteriors"]) == len(body["token_ids"])
    assert all(len(row) == 3 and sum(row) == pytest.approx(1, abs=1e-5) for row in body["token_posteriors"])
    assert {"id", "title", "text", "score", "prior", "posterior"} <= body["passages"][0].keys()
    assert sum(passage["posterior"] for passage in body["passages"]) == pytest.approx(1, abs=1e-5)


def test_a_person_sees_answer_and_passages(cli: Cli, target: str) -> None:
    text = cli("ask", QUESTION, "--target", target).stdout
    assert ask(cli, target)["answer"].strip() in text
    assert "log p(y|x)" in text
    assert "posterior" in text


def test_several_answers_show_the_score_that_ranks_them(cli: Cli, target: str) -> None:
    options = ("--beams", 4, "--returns", 3)
    expected = [f"{one['score']:.4f}" for one in ask(cli, target, *options)["hypotheses"]]
    lines = cli("ask", QUESTION, "--target", target, *options).stdout.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["score", "log"]]
    assert [line.split()[1] for line in lines[head + 1 : head + 4]] == expected


def test_stream_ends_with_the_same_answer(cli: Cli, target: str) -> None:
    found = cli("ask", QUESTION, "--target", target, "--stream", "--json")
    events = [json.loads(line) for line in found.stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["passages", "answer"]
    assert {event["event"] for event in events[1:-1]} == {"tokens"}
    alone = ask(cli, target)
    assert (events[-1]["answer"], events[-1]["token_posteriors"]) == (alone["answer"], alone["token_posteriors"])
    assert "".join(event["text"] for event in events[1:-1]) == events[-1]["answer"]
    assert [passage["id"] for passage in events[0]["passages"]] == [row["id"] for row in alone["passages"]]
    assert found.stderr == ""
    shown = cli("ask", QUESTION, "--target", target, "--stream").stdout
    assert shown.startswith(alone["answer"].strip())


def test_sequence_mode_warns_about_a_token_checkpoint(cli: Cli, target: str) -> None:
    found = cli("ask", QUESTION, "--target", target, "--mode", "sequence", "--decoding", "fast")
    assert found.returncode == 0
    assert "warning: " in found.stderr


def test_sampling_with_a_seed_repeats(cli: Cli, target: str) -> None:
    options = ["--temperature", 1.5, "--top-k", 20, "--seed", 7]
    assert ask(cli, target, *options)["token_ids"] == ask(cli, target, *options)["token_ids"]


def test_explain_writes_one_page_of_its_own(cli: Cli, target: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = cli("ask", f"{QUESTION} <b>&amp;</b>", "--target", target, "--docs", 3, "--explain", page)
    assert found.returncode == 0, found.stderr
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html
    assert "<b>&amp;</b>" not in html
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", html)
    assert html.count('<tr><th scope="row">') == 3


def test_score_retrieve_info_and_search(cli: Cli, target: str, up: Up) -> None:
    body = ask(cli, target, "--docs", 3, "--beams", 1)
    scored = json.loads(cli("score", QUESTION, body["answer"], "--target", target, "--docs", 3, "--json").stdout)
    assert scored["log_prob"] == pytest.approx(sum(scored["token_log_probs"]), abs=1e-4)
    assert len(scored["token_pieces"]) == len(scored["token_ids"])
    assert body["answer"] in "".join(scored["token_pieces"])
    shown = cli("score", QUESTION, body["answer"], "--target", target, "--docs", 3).stdout
    for piece, value in zip(scored["token_pieces"], scored["token_log_probs"], strict=True):
        assert re.search(rf"^{re.escape(piece.strip())}.* {value:.3f}", shown, re.MULTILINE), shown
    retrieved = json.loads(cli("retrieve", QUESTION, "--target", target, "--docs", 3, "--json").stdout)
    assert [row["id"] for row in retrieved["passages"]] == [row["id"] for row in body["passages"]]
    found = json.loads(cli("kb", "search", QUESTION, "--k", 3, "--target", target, "--json").stdout)
    assert [row["id"] for row in found["passages"]] == [row["id"] for row in body["passages"]]
    places = {name: up.wait_for(rf"{name}\s+│ (\S+:\d+)").group(1) for name in ("retriever", "generator")}
    info = json.loads(
        cli("info", "--retriever", places["retriever"], "--generator", places["generator"], "--json").stdout
    )
    assert (info["generator"]["model_type"], info["retriever"]["dimension"]) == ("bart", 32)
    assert (info["generator"]["trained_mode"], info["retriever"]["loaded_versions"]) == ("token", [1])


def test_filters_reach_the_retriever(cli: Cli, target: str) -> None:
    chosen = ["--filter", "number>=3", "--filter", "number<6"]
    body = ask(cli, target, *chosen, "--docs", 5)
    assert {passage["metadata"]["number"] for passage in body["passages"]} == {3, 4, 5}
    assert all(len(row) == 3 for row in body["token_posteriors"])
    for command in (["retrieve", QUESTION], ["score", QUESTION, "city"]):
        found = cli(*command, "--target", target, "--filter", "number=4,7", "--json")
        assert {row["metadata"]["number"] for row in json.loads(found.stdout)["passages"]} == {4, 7}
    found = json.loads(cli("kb", "search", QUESTION, "--target", target, "--filter", "number=4,7", "--json").stdout)
    assert len(found["passages"]) == 2


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--filter", "number>=1000"], "--filter"),
        (["--filter", "number>3", "--filter", "number<2"], "--filter"),
        (["--docs", 0], "--docs"),
        (["--docs", 1000], "--docs"),
        (["--beams", 0], "--beams"),
        (["--beams", 1000], "--beams"),
        (["--length-penalty", -1, "--early-stopping", "never", "--beams", 2], "--length-penalty"),
        (["--knowledge-version", 9], "--knowledge-version"),
        (["--search-kind", "bm25"], "start it with --lexical (so do 'ragserve up', 'demo' and 'quickstart'"),
    ],
)
def test_bad_requests_are_one_line_and_the_services_go_on(
    cli: Cli, target: str, up: Up, arguments: list[object], field: str
) -> None:
    found = cli("ask", QUESTION, "--target", target, *arguments)
    assert found.returncode in (1, 2)
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert field in found.stderr
    assert up.process.poll() is None


@pytest.mark.parametrize("question", ["", "x" * 100_000], ids=["empty", "long"])
def test_bad_questions_are_one_line(cli: Cli, target: str, question: str) -> None:
    found = cli("ask", question, "--target", target)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert "QUESTION" in found.stderr


def test_a_second_up_on_the_same_ports_is_refused_and_the_first_goes_on(
    cli: Cli, target: str, assets: Assets, tmp_path: Path
) -> None:
    config = tmp_path / "same.toml"
    lines = [f"[{name}.server]\nport = 0\nmetrics_port = 0\n" for name in DEFAULT_PORTS if name != "orchestrator"]
    config.write_text("".join(lines) + f"[orchestrator.server]\nport = {target.rpartition(':')[2]}\nmetrics_port = 0\n")
    second = cli("up", "--config", config, *assets.options)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: orchestrator server.port: cannot listen on {target}")
    assert second.stderr.count("\n") == 1
    assert ask(cli, target)["answer"]


def test_logs_are_marked_with_their_service(up: Up) -> None:
    for name in DEFAULT_PORTS:
        assert re.search(rf"^{name}\s+\| .*msg=serving", up.text, re.MULTILINE)


def test_interrupt_drains_all_three(up: Up) -> None:
    children = psutil.Process(up.process.pid).children(recursive=True)
    assert len(children) == 3
    assert up.interrupt() == 0
    assert psutil.wait_procs(children, timeout=5)[1] == []
    stopped = {name: up.text.index(f"service={name} msg=stopped") for name in DEFAULT_PORTS}
    assert stopped["orchestrator"] == min(stopped.values())
