import { describe, expect, it } from "vitest";
import { scaleOf, Tally } from "../../model/colour";
import {
  cellMeaning,
  cellSentence,
  comparedSentence,
  difference,
  type Picture,
  pictureWords,
  pointedSentence,
  rangeName,
  share,
  sumSentence,
} from "./sentences";
import type { Subject } from "./tiles";

const labels = ["[CLS]", "the", "river", "bank"];
const names = { queries: labels, keys: labels, against: null };
const at = { map: 0, query: 3, key: 2, cell: null };

describe("sentences", () => {
  it.each([
    [0.37213, "37.2%"],
    [1, "100%"],
    [0.0004, "0.04%"],
    [3.2e-8, "3.2e-6%"],
    [0, "0%"],
    [-0.12, "−12%"],
    [Number.NaN, "not a number"],
  ])("writes %f as %s", (weight, text) => {
    expect(share(weight)).toBe(text);
  });

  it("says who looks at whom", () => {
    expect(pointedSentence({ ...at, exact: 0.372 }, names)).toBe("bank (3) looks at river (2): 37.2%.");
    expect(pointedSentence({ ...at, exact: undefined }, names)).toBe("bank (3) at river (2) …");
    expect(pointedSentence({ ...at, exact: null }, names)).toBe(
      "bank (3) at river (2): the single weight was not kept.",
    );
    expect(pointedSentence({ ...at, exact: 0.1 }, { queries: null, keys: null, against: "layer 1, head 2" })).toBe(
      "token 3 looks at token 2: +10 points against layer 1, head 2.",
    );
  });

  it("says what a cell holds where it is more than one pair", () => {
    const cell = { queries: [128, 256], keys: [0, 1], weight: 0.5 } as const;
    expect(cellSentence({ ...at, exact: undefined, cell }, names, "max")).toBe(
      "Its cell, tokens 128–255 at token 0: largest weight 50%.",
    );
    expect(cellSentence({ ...at, exact: 0.5, cell: { ...cell, queries: [3, 4] } }, names, "max")).toBe("");
  });

  it("says what a sum is", () => {
    expect(sumSentence({ map: 0, side: "queries", tokens: [3, 4], sum: 0.25 }, names)).toBe(
      "bank (3): 25% of the attention is on the keys in view.",
    );
    expect(sumSentence({ map: 0, side: "keys", tokens: [0, 4], sum: 1.5 }, names)).toBe(
      "tokens 0–3 receive 1.5 each from the queries in view.",
    );
  });

  it("says what the colours are of", () => {
    const scale = scaleOf(new Tally(), "linear", "saccade", false);
    const signed = { ...scale, signed: true };
    expect(cellMeaning({ scale, exact: true, reduce: "max", cell: [1, 1] })).toBe("Weight");
    expect(cellMeaning({ scale, exact: false, reduce: "mean", cell: [128, 64] })).toBe(
      "Mean weight in a cell of 128 × 64 tokens",
    );
    expect(cellMeaning({ scale: signed, exact: false, reduce: "max", cell: [4, 4] })).toBe(
      "Difference of the cells’ largest weights, 4 × 4 tokens each",
    );
  });

  it("tells the picture in words", () => {
    const cells = [
      { queries: [3, 4], keys: [2, 3], weight: 0.5 },
      { queries: [0, 2], keys: [0, 2], weight: 0.25 },
    ] as const;
    const picture: Picture = {
      title: "layer 0, head 1",
      view: { queries: [0, 4], keys: [0, 4] },
      extent: { queries: 4, keys: 4 },
      cells,
      names,
      concentration: 0.4,
      compared: "",
      lacks: "nothing",
    };
    expect(pictureWords(picture)).toBe(
      "Map of layer 0, head 1: all 4 queries by 4 keys. Strongest: bank (3) looks at river (2): 50%; tokens 0–1 at tokens 0–1: 25%. " +
        "On average 40% of a query's attention is on its heaviest key in view.",
    );
    const nothing = { ...picture, view: { queries: [1, 2], keys: [0, 4] }, cells: [], concentration: null } as const;
    expect(pictureWords(nothing)).toMatch(/queries 1 to 1, keys 0 to 3\. No weight in view\.$/);
    expect(pictureWords({ ...nothing, names: { ...names, against: "head 2" }, compared: "Only some." })).toMatch(
      / No difference in view\. Only some\.$/,
    );
    expect(pictureWords({ ...nothing, lacks: "all" })).toBe("Map of layer 0, head 1. The map could not be loaded.");
    expect(pictureWords({ ...nothing, lacks: "part" })).toMatch(/Part of the map could not be loaded\.$/);
  });

  it("says how far a difference goes", () => {
    const subject = (queries: number, keys: number) => ({ extent: { queries, keys } }) as Subject;
    const said = (against: Subject | null) => comparedSentence({ subject: subject(5, 5), against });
    expect([said(null), said(subject(5, 5))]).toEqual(["", ""]);
    expect(said(subject(3, 3))).toBe("Only the first 3 tokens of both are compared.");
    expect(said(subject(3000, 4))).toBe("Only the first 5 queries and the first 4 keys of both are compared.");
  });

  it("names ranges", () => {
    expect([rangeName(labels, [2, 3]), rangeName(labels, [1000, 3000]), difference(0.03)]).toEqual([
      "river (2)",
      "tokens 1,000–2,999",
      "+3 points",
    ]);
  });
});
