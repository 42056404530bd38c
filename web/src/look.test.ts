import { describe, expect, it } from "vitest";
import { inMemory, Look, parse, print } from "./look.svelte";

describe("a look in a link", () => {
  it("is short where nothing was changed", () => {
    expect(print(parse(""))).toBe("/heads");
    expect(print(parse("/pattern?nothing=1&site=x&head=-1"))).toBe("/pattern");
  });

  it("comes back as it was", () => {
    const look = parse("");
    Object.assign(look, {
      view: "pattern",
      text: "~He left the roses & more = 100% “bank”.",
      beside: "1",
      site: 3,
      head: 5,
      against: { site: 2, head: "mean" },
      difference: "head",
      chosen: [
        { site: 0, head: 1 },
        { site: 2, head: "mean" },
      ],
      query: 0,
      key: 7,
      rectangle: { queries: [0.25, 131072], keys: [12, 13.5] },
      tone: "rank",
      words: false,
      special: true,
      locked: [3, 1],
      locked2: [2],
      tour: 4,
    });
    expect(parse(`#${print(look)}`)).toEqual(look);
    expect(print(parse(print(look)))).toBe(print(look));
  });

  it("tells no rectangle from an empty one, and refuses what is none", () => {
    for (const wrong of ["1~2~3", "1~2~3~4~5", "a~b~c~d", "2~1~0~1", "0~1~0~Infinity", "0~1~1~1"]) {
      expect(parse(`/pattern?rectangle=${wrong}`).rectangle).toBeNull();
    }
    expect(parse("/pattern?rectangle=0~1~0~2").rectangle).toEqual({ queries: [0, 1], keys: [0, 2] });
  });

  it("keeps a query of 0 apart from none", () => {
    expect(parse("/inside?query=0").query).toBe(0);
    expect(parse("/inside?query=").query).toBeNull();
  });

  it("forgets what was chosen of a text beside when another takes its place, not of the text itself", () => {
    const look = new Look(inMemory("/lines?beside=1&locked=3&locked2=4"));
    look.set({ beside: "1", site: 2 });
    expect(look.at.locked2).toEqual([4]);
    look.set({ beside: "2" });
    expect([look.at.locked, look.at.locked2]).toEqual([[3], []]);
    look.set({ beside: null, locked2: [5] });
    expect(look.at.locked2).toEqual([5]);
  });

  it("is not thrown off by a broken escape or an absurd list", () => {
    expect(parse("/lines?text=%E0%A4%A").view).toBe("lines");
    expect(parse(`/lines?locked=${"1-".repeat(10_000)}1`).locked).toHaveLength(4096);
  });
});
