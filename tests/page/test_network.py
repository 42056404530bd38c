"""What the page fetches: little at first. That it asks its own server only, `Visit.check` sees to in every test."""

import gzip

MOST = 120_000  # bytes of JavaScript, compressed, until the first view is drawn


def test_little_is_fetched_at_first(visit, served):
    scripts = {}

    def answered(response):
        if "javascript" in response.headers.get("content-type", ""):
            scripts[response.url] = response

    visit.tab.on("response", answered)
    visit.open(served.at("/heads"))
    sizes = {url: len(gzip.compress(response.body())) for url, response in scripts.items()}
    assert len(sizes) >= 2
    assert 20_000 < sum(sizes.values()) <= MOST, sizes


def test_a_view_is_fetched_when_it_is_opened(visit, served):
    visit.open(served.at("/heads"))
    before = {url for url in visit.asked if url.endswith(".js")}
    visit.go("/pattern")
    after = {url for url in visit.asked if url.endswith(".js")}
    assert any("Pattern" in url for url in after - before)
    assert not any("Pattern" in url for url in before)
