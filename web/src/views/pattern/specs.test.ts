import { describe, expect, it } from "vitest";
import { parse } from "../../look.svelte";
import type { SiteInfo, TextInfo } from "../../source/contract";
import { againstOf, hasMap, type Looking, MOST_SMALL, mapsOf, smallOf } from "./specs";

function text(id: string, tokens: number, sites = 2): TextInfo {
  const site = (i: number): SiteInfo => ({
    name: `l.${i}`,
    label: `layer ${i}`,
    heads: [0, 1, 4],
    queries: tokens,
    keys: tokens,
    query_tokens: "t",
    key_tokens: "t",
    exact: true,
    map: null,
  });
  return { id, name: `text ${id}`, text: null, sites: Array.from({ length: sites }, (_, i) => site(i)) };
}

function looking(link: string, beside: TextInfo | null = null): Looking {
  const look = parse(`/pattern?${link}`);
  return { text: text("0", 5), beside, site: look.site, head: look.head, look };
}

const none = () => ({ queries: null, keys: null });

describe("maps", () => {
  it("is one map of the head that is looked at", () => {
    const [map, more] = mapsOf(looking("site=1&head=2&reduce=mean"), none);
    expect(map?.subject).toEqual({
      text: "0",
      site: 1,
      head: 2,
      reduce: "mean",
      extent: { queries: 5, keys: 5 },
      exact: true,
    });
    expect([map?.against, more]).toEqual([null, undefined]);
  });

  it("is two maps of two texts, of the same head", () => {
    const maps = mapsOf(looking("head=1", text("1", 7)), none);
    expect(maps.map(({ subject, title }) => [subject.text, subject.extent.keys, title])).toEqual([
      ["0", 5, "text 0"],
      ["1", 7, "text 1"],
    ]);
  });

  it("is one map where another head or text is taken off", () => {
    const heads = looking("head=1&difference=head&against=1.2", text("1", 7));
    expect(mapsOf(heads, none).map(({ title, against }) => [title, against?.site, against?.head])).toEqual([
      ["layer 0, head 1 − layer 1, head 4", 1, 2],
    ]);
    const texts = looking("head=1&difference=beside", text("1", 7));
    expect(mapsOf(texts, none).map(({ against }) => [against?.text, against?.head])).toEqual([["1", 1]]);
  });

  it("takes nothing off where there is nothing to take", () => {
    expect(againstOf(looking("difference=beside"))).toBeNull();
    expect(againstOf(looking("difference=head"))).toBeNull();
    expect(againstOf(looking("difference=head&against=9.0"))).toBeNull();
  });

  it("leaves special tokens out of the scale unless told otherwise", () => {
    const tokens = {
      labels: [],
      word: { data: new Int32Array(), shape: [0] },
      special: { data: new Uint8Array([1, 0]), shape: [2] },
    };
    const both = () => ({ queries: tokens, keys: tokens });
    expect(mapsOf(looking(""), both)[0]?.specialKeys).toBe(tokens.special.data);
    expect(mapsOf(looking("special=1"), both)[0]?.specialKeys).toBeNull();
  });

  it("shows chosen heads small, without the large one, and not too many", () => {
    const chosen = "0.0-0.1-1.0-1.1-1.2-0.2-0.mean-1.mean";
    const small = smallOf(looking(`head=1&chosen=${chosen}`), none);
    expect(small).toHaveLength(MOST_SMALL);
    expect(small.map(({ title }) => title).slice(0, 2)).toEqual(["layer 0, head 0", "layer 1, head 0"]);
  });

  it("takes the same off small maps as off the large one", () => {
    const small = smallOf(looking("head=1&difference=head&against=1.2&chosen=0.0-1.1"), none);
    expect(small.map(({ against }) => [against?.site, against?.head])).toEqual([
      [1, 2],
      [1, 2],
    ]);
    const beside = smallOf(looking("head=1&difference=beside&chosen=0.0-1.1", text("1", 7)), none);
    expect(beside.map(({ against }) => [against?.text, against?.site, against?.head])).toEqual([
      ["1", 0, 0],
      ["1", 1, 1],
    ]);
  });

  it("has no map of an empty text, or where nothing was kept", () => {
    const [site] = text("0", 5).sites as [SiteInfo];
    expect(hasMap(site)).toBe(true);
    expect(hasMap({ ...site, queries: 0 })).toBe(false);
    expect(hasMap({ ...site, exact: false })).toBe(false);
    expect(hasMap({ ...site, exact: false, map: { cells: [4, 4], reduce: "max" } })).toBe(true);
  });
});
