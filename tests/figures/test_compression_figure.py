"""The figure of compressed children: one line each, whatever they are called."""

from llmrec_core.figures.compression import compression_figure


def row(run_id, method="int8", title="8-bit weights", share=0.3, speed=1.2, difference=(-0.01, -0.02, 0.01)):
    mean, low, high = difference or (0, 0, 0)
    return {
        "run_id": run_id,
        "method": method,
        "title": title,
        "metric": "ndcg@10",
        "size_share": share,
        "speed_ratio": speed,
        "difference": {"mean": mean, "ci_low": low, "ci_high": high} if difference else None,
    }


def test_each_child_has_a_line_of_its_own_and_its_interval():
    parent = row("20260101-000000-aaaaa", "parent", "The run itself", 1.0, 1.0, None)
    graph = row("20260101-000000-ddddd", "onnx", "<b>", 1.0, 0.8, None)
    figure = compression_figure([parent, row("20260101-000000-bbbbb"), row("20260101-000000-ccccc", share=0.5), graph])
    sizes, speeds, differences = figure.data
    names = ["8-bit weights · bbbbb", "8-bit weights · ccccc", "&lt;b&gt;"]
    assert list(sizes.y) == list(speeds.y) == names
    assert list(sizes.x) == [30, 50, 100]
    assert list(speeds.text) == ["1.20x", "1.20x", "0.80x"]
    # What was not compared has no point.
    assert list(differences.y) == names[:2]
    assert [round(x, 9) for x in differences.error_x.array] == [0.02, 0.02]
    assert [round(x, 9) for x in differences.error_x.arrayminus] == [0.01, 0.01]
    assert figure.layout.xaxis2.ticktext == ("1x",)
    assert "NDCG@10" in figure.layout.xaxis3.title.text


def test_speeds_are_marked_in_words():
    rows = [row("a", "parent", "The run itself", 1.0, 1.0, None), row("b", speed=0.4), row("c", speed=5)]
    assert compression_figure(rows).layout.xaxis2.ticktext == ("0.5x", "1x", "2x", "5x")
    wide = compression_figure([*rows, row("d", "distil-two-tower", speed=300)]).layout.xaxis2
    assert wide.ticktext == ("1x", "10x", "100x")
    assert wide.tickvals == (1, 10, 100)


def test_without_children_it_says_so():
    figure = compression_figure([row("a", "parent", "The run itself", 1.0, 1.0, None)])
    assert "Nothing was compressed" in figure.layout.annotations[0].text
