import { describe, expect, it } from "vitest";
import type { Source, TextInfo } from "../../source/contract";
import { csvOfMaps, isExact, jsonOf, type Seen, weightsOf } from "./numbers";
import { type Subject, Tile } from "./tiles";

const subject: Subject = { text: "0", site: 0, head: 1, reduce: "max", extent: { queries: 3, keys: 3 }, exact: true };
const tile = new Tile([0, 4000], [0, 4000], new Float32Array([0.5, 0.25, Number.NaN, 0]), [2, 2], false, "max");
const labels = ["a", "=b", 'c"'];
const text = (id: string, said: string): TextInfo => ({ id, name: `${said.slice(0, 59)}…`, text: said, sites: [] });
const about = { model: "m", what: "layer 1" };
const seen: Seen = {
  text: text("0", "a =b"),
  other: null,
  subject,
  against: null,
  tiles: [tile],
  less: null,
  view: { queries: [1, 3], keys: [0, 2] },
  queryLabels: labels,
  keyLabels: labels,
  reduce: "max",
};

/** Weights that tell where they are from: 10 head + query + key / 10. */
const source = {
  ask: async (
    _: string,
    { head, queries, keys }: { head: number; queries: [number, number]; keys: [number, number] },
  ) => {
    const shape = [queries[1] - queries[0], keys[1] - keys[0]] as const;
    const data = Float32Array.from(
      { length: shape[0] * shape[1] },
      (_, i) => 10 * head + queries[0] + Math.floor(i / shape[1]) + (keys[0] + (i % shape[1])) / 10,
    );
    return { weights: { data, shape } };
  },
} as unknown as Source;

describe("numbers in view", () => {
  it("writes single weights with their tokens, as text where a spreadsheet might compute", async () => {
    expect(isExact(seen)).toBe(true);
    const csv = await csvOfMaps(source, [{ ...seen, view: { queries: [1, 2], keys: [1, 3] } }]);
    expect(csv.split("\n")).toEqual([
      "query_position,query,key_position,key,weight",
      `1,'=b,1,'=b,${Math.fround(11.1)}`,
      `1,'=b,2,"c""",${Math.fround(11.2)}`,
      "",
    ]);
  });

  it("writes a difference with both of its parts, and the other text's tokens", async () => {
    const against = { ...subject, text: "1", head: 0, extent: { queries: 2, keys: 3 } };
    const other = { text: text("1", "d e"), queryLabels: ["d", "e"], keyLabels: ["d", "e", "f"] };
    const part: Seen = { ...seen, against, other };
    const weights = await weightsOf(source, part);
    expect(weights.queries).toEqual([1, 2]);
    expect([...(weights.less ?? [])]).toEqual([1, expect.closeTo(1.1)]);
    expect((await csvOfMaps(source, [part])).split("\n").slice(0, 2)).toEqual([
      "query_position,query,key_position,key,weight,other,difference,other_query,other_key",
      "1,'=b,0,a,11,1,10,e,d",
    ]);
    expect(await jsonOf(source, [part], about)).toMatchObject({
      text: "a =b",
      other_text: "d e",
      query_tokens: ["=b"],
      other_query_tokens: ["e"],
      other_key_tokens: ["d", "e"],
    });
  });

  it("has no difference where the other text has no tokens", async () => {
    const against = { ...subject, extent: { queries: 1, keys: 1 } };
    await expect(weightsOf(source, { ...seen, against })).rejects.toThrow(/no difference to save/);
  });

  it("writes the cells where single weights are too many or were not kept", async () => {
    const far = { ...seen, view: { queries: [0, 4000], keys: [0, 2000] } } as const;
    expect(isExact(far)).toBe(false);
    expect(isExact({ ...seen, subject: { ...subject, exact: false } })).toBe(false);
    expect(await csvOfMaps(source, [far])).toBe(
      "query_start,query_stop,key_start,key_stop,max_weight\n0,2000,0,2000,0.5\n2000,4000,0,2000,\n",
    );
  });

  it("gives the same as JSON, with the whole text", async () => {
    const long = text("0", "a =b ".repeat(50));
    const part = { ...seen, text: long, view: { queries: [2, 3], keys: [0, 2] } } as const;
    expect(await jsonOf(source, [part], about)).toEqual({
      model: "m",
      text: long.text,
      what: "layer 1",
      queries: [2, 3],
      keys: [0, 2],
      query_tokens: ['c"'],
      key_tokens: ["a", "=b"],
      weights: [[12, expect.closeTo(12.1)]],
    });
    const far = { ...seen, view: { queries: [0, 2000], keys: [0, 4000] } } as const;
    expect(await jsonOf(source, [far], about)).toMatchObject({
      cells: [
        [0, 2000, 0, 2000, 0.5],
        [0, 2000, 2000, 4000, 0.25],
      ],
    });
  });

  it("gives both of two maps: the one beside in its own entry, and in rows that say which text they are of", async () => {
    const view = { queries: [0, 1], keys: [0, 1] } as const;
    const second: Seen = { ...seen, text: text("1", "d"), subject: { ...subject, text: "1", head: 2 }, view };
    const both = [{ ...seen, view }, second];
    expect(await jsonOf(source, both, about)).toMatchObject({
      text: "a =b",
      weights: [[10]],
      beside: { model: "m", text: "d", weights: [[20]] },
    });
    const rows = async (parts: readonly Seen[]) => (await csvOfMaps(source, parts)).split("\n");
    expect(await rows(both)).toEqual([
      "text,query_position,query,key_position,key,weight",
      "a =b,0,a,0,a,10",
      "d,0,a,0,a,20",
      "",
    ]);
    const twice = both.map((part, i) => ({ ...part, text: text(String(i), "d".repeat(999)) }));
    expect((await rows(twice)).slice(1, 3).map((row) => row.slice(59, 64))).toEqual(["… (0)", "… (1)"]);
    // In cells all of them, if one of them is.
    const [first] = await rows([both[0] as Seen, { ...second, subject: { ...second.subject, exact: false } }]);
    expect(first).toBe("text,query_start,query_stop,key_start,key_stop,max_weight");
  });
});
