import { describe, expect, it } from "vitest";
import {
  alike,
  following,
  layout,
  levelOf,
  pairAt,
  panned,
  rectangleOf,
  stepOf,
  tokensIn,
  whole,
  windowOf,
  zoomed,
} from "./geometry";

const size = { width: 800, height: 600 };
const box = { left: 0, top: 0, ...size };
const long = { queries: 131_072, keys: 131_072 };
const short = { queries: 16, keys: 16 };

describe("windows", () => {
  it("shows all of a map, square", () => {
    expect(whole(short, size)).toEqual({ x: 0, y: 0, sx: 37.5, sy: 37.5 });
    expect(rectangleOf(whole(short, size), short, size)).toBeNull();
  });

  it("stretches a map that is far from square", () => {
    expect(whole({ queries: 10, keys: 1000 }, size)).toEqual({ x: 0, y: 0, sx: 0.8, sy: 60 });
  });

  it("keeps what is under the pointer there while it zooms, down to one pair", () => {
    const point = { x: 321.5, y: 234.5 };
    let window = windowOf({ queries: [65_000, 65_600], keys: [100_000, 100_800] }, long, size);
    const pair = pairAt({ window, box, extent: long }, point);
    for (let i = 0; i < 40; i++) window = zoomed(window, 1.5, point, long, size);
    expect(pairAt({ window, box, extent: long }, point)).toEqual(pair);
    expect(window.sx).toBe(540);
    for (let i = 0; i < 80; i++) window = zoomed(window, 1 / 1.5, point, long, size);
    expect(window).toEqual(whole(long, size));
  });

  it("does not leave the map", () => {
    const window = windowOf({ queries: [0, 300], keys: [0, 400] }, long, size);
    expect(panned(window, -1e9, 1e9, long, size)).toEqual({ ...window, x: 0, y: 131_072 - 300 });
  });

  it("opens what a rectangle says, in the same size the same", () => {
    const rectangle = { queries: [1000.25, 1300.25], keys: [5000, 5400] } as const;
    const window = windowOf(rectangle, long, size);
    expect(window).toEqual({ x: 5000, y: 1000.25, sx: 2, sy: 2 });
    expect(rectangleOf(window, long, size)).toEqual(rectangle);
  });

  it("opens what a rectangle of another text says as far as there is such a part", () => {
    const other = { queries: [20_000, 60_000], keys: [0, 40_000] } as const;
    expect(windowOf(other, short, size)).toEqual(whole(short, size));
    expect(windowOf({ queries: [3.1, 3.2], keys: [5.1, 5.2] }, short, size).sx).toBe(540);
  });

  it("tells the tokens in view", () => {
    const window = windowOf({ queries: [1000.25, 1300.25], keys: [5000, 5400] }, long, size);
    expect(tokensIn(window, long, size)).toEqual({ queries: [1000, 1301], keys: [5000, 5400] });
    expect(tokensIn(whole(short, size), short, size)).toEqual({ queries: [0, 16], keys: [0, 16] });
  });

  it("follows a token that goes out of view, and stays otherwise", () => {
    const window = windowOf({ queries: [1000, 1300], keys: [5000, 5400] }, long, size);
    expect(following(window, 1150, 5200, long, size)).toEqual(window);
    const moved = following(window, 1150, 5399, long, size);
    expect(moved.x).toBe(5399 + 1 + 80 - 400);
    expect(moved.y).toBe(window.y);
  });

  it("shows the same share of a longer text", () => {
    const window = { x: 4, y: 4, sx: 50, sy: 50 };
    expect(alike(window, short, { queries: 32, keys: 32 })).toEqual({ x: 8, y: 8, sx: 25, sy: 25 });
  });

  it("finds no pair beside the map", () => {
    const map = { window: whole(short, size), box, extent: short };
    expect(pairAt(map, { x: 599, y: 599 })).toEqual({ query: 15, key: 15 });
    expect(pairAt(map, { x: 601, y: 10 })).toBeNull();
    expect(pairAt({ ...map, box: { ...box, left: 100, top: 50 } }, { x: 99, y: 60 })).toBeNull();
  });
});

describe("levels", () => {
  it("has cells of one to two pixels far away, single weights close by", () => {
    expect(levelOf(whole(short, size), short, size)).toBe(0);
    const window = whole(long, size);
    const level = levelOf(window, long, size);
    expect(2 ** level * window.sx).toBeGreaterThanOrEqual(1);
    expect(2 ** level * window.sx).toBeLessThan(2);
    expect(levelOf(whole(long, { width: 150, height: 150 }), long, { width: 150, height: 150 })).toBe(9); // one tile
    expect(levelOf(windowOf({ queries: [0, 600], keys: [0, 800] }, long, size), long, size)).toBe(0);
  });

  it("bounds the tiles of a stretched map", () => {
    const thin = { queries: 16, keys: 131_072 };
    const level = levelOf(whole(thin, size), thin, size);
    expect(131_072 / (256 * 2 ** level)).toBeLessThanOrEqual(32);
  });
});

describe("layout", () => {
  const gutters = { left: 80, top: 70, right: 40, bottom: 40 };

  it("puts two maps beside one another, and below one another where it is narrow", () => {
    const wide = layout(1200, 600, 2, 0, gutters);
    expect(wide.plots[0]?.top).toBe(wide.plots[1]?.top);
    expect(wide.height).toBe(600);
    const narrow = layout(330, 500, 2, 0, gutters);
    expect(narrow.plots[0]?.left).toBe(narrow.plots[1]?.left);
    expect(narrow.height).toBe(2 * 330 + 16);
  });

  it("has room for all small maps", () => {
    const { small, height } = layout(360, 400, 1, 5, gutters);
    expect(small.map(({ left }) => left)).toEqual([0, 166, 0, 166, 0]);
    expect(height).toBe((small[4]?.top ?? 0) + 150);
  });
});

describe("axes", () => {
  it.each([
    [800 / 131_072, 60, 10_000],
    [1, 60, 100],
    [10, 60, 10],
    [200, 60, 1],
  ])("at %f pixels per token, numbers %f pixels apart are %i apart", (scale, apart, step) => {
    expect(stepOf(scale, apart)).toBe(step);
  });
});
