import { describe, expect, it } from "vitest";
import { viewOf } from "./shown";
import type { MapSpec } from "./specs";
import { View } from "./view";

const pen = { width: (text: string) => 6 * text.length };

function map(text: string, tokens: number): MapSpec {
  const extent = { queries: tokens, keys: tokens };
  return {
    subject: { text, site: 0, head: 0, reduce: "max", extent, exact: true },
    against: null,
    title: "",
    queryLabels: null,
    keyLabels: null,
    specialKeys: null,
  };
}

function opened(maps: MapSpec[], small: MapSpec[] = []): View {
  const view = new View(pen);
  view.resize(900, 800);
  view.show(maps, small);
  view.spread();
  return view;
}

const middle = (view: View, map = 0) => {
  const { left, top, width, height } = (view.main[map] as View["main"][0]).box;
  return { x: left + width / 2, y: top + height / 2 };
};
const part = { queries: [100, 200], keys: [300, 400] } as const;

describe("a view of maps", () => {
  it("shows all of a map, and cannot be moved then", () => {
    const view = opened([map("0", 1000)]);
    expect(view.rectangle).toBeNull();
    expect([view.pan(50, 50), view.zoom(0.5)]).toEqual([false, false]);
    expect(view.zoom(2)).toBe(true);
    expect([view.pan(50, 50), view.pan(1e12, 1e12), view.pan(1, 1)]).toEqual([true, true, false]);
  });

  it("opens a part before there is room or a map, and keeps it when the room changes", () => {
    const view = new View(pen);
    expect(view.open(part)).toBe(false);
    expect(view.rectangle).toEqual(part);
    view.show([map("0", 1000)], []);
    expect(view.spread()).toBe(false);
    view.resize(900, 800);
    expect([view.spread(), view.rectangle?.keys[0], view.rectangle?.queries[0]]).toEqual([true, 300, 100]);
    for (const width of [400, 1200, 900]) expect(view.resize(width, 800)).toBe(true);
    expect(view.resize(900, 800)).toBe(false);
    expect([view.rectangle?.keys[0], view.rectangle?.queries[0]]).toEqual([300, 100]);
  });

  it("forgets what was asked for once it was moved, not when the room changes", () => {
    const view = opened([map("0", 1000)]);
    view.open({ queries: [100, 200], keys: [300, 310] });
    const { rectangle } = view;
    for (const width of [300, 900]) view.resize(width, 800);
    expect(view.rectangle).toEqual(rectangle);
    view.pan(100, 0);
    const moved = view.rectangle?.keys[0] as number;
    view.resize(300, 800);
    expect([moved > 310, view.rectangle?.keys[0]]).toEqual([true, expect.closeTo(moved, 6)]);
  });

  it("keeps its window for another map as long, its rectangle for a longer one", () => {
    const view = opened([map("0", 1000)]);
    view.open(part);
    const { window } = view;
    view.show([map("1", 1000)], []);
    expect(view.window).toBe(window);
    view.show([map("1", 2000)], []);
    expect(view.window?.x).toBe(300);
  });

  it("shows the same part of all maps, of a longer one more tokens", () => {
    const view = opened([map("0", 1000), map("1", 2000)], [map("2", 1000)]);
    view.open({ queries: [100, 300], keys: [400, 600] });
    view.spread();
    const [first, second, small] = view.maps.map((one) => viewOf(one).keys[0]);
    expect([first, second, small]).toEqual([400, 800, 400]);
  });

  it("shows of a difference what both maps have, the shorter one whichever it is", () => {
    const less = { ...map("0", 1000), against: map("1", 90).subject };
    const view = opened([less]);
    expect(viewOf(view.main[0] as View["main"][0])).toEqual({ queries: [0, 90], keys: [0, 90] });
    view.show([{ ...map("1", 90), against: map("0", 1000).subject }], []);
    expect(viewOf(view.main[0] as View["main"][0]).keys).toEqual([0, 90]);
  });

  it("looks at what is enclosed, in either map and from any corner", () => {
    const view = opened([map("0", 1000), map("1", 2000)]);
    const { x, y } = middle(view, 1);
    expect(view.enclose({ x, y }, { x: x + 3, y: y + 99 })).toBe(false);
    expect(view.enclose({ x: x + 50, y: y + 50 }, { x, y })).toBe(true);
    const side = (view.main[0] as View["main"][0]).box.width;
    expect(view.rectangle?.keys[0]).toBeCloseTo(500 - (side - Math.min(side, view.main[0]?.box.height ?? 0)) / 2, 6);
    expect(view.enclose({ x: 0, y: 0 }, { x, y })).toBe(false);
  });

  it("steps from what is chosen by an eighth of the view, or by a token, and stays on the map", () => {
    const view = opened([map("0", 1000)]);
    const none = { query: null, key: null };
    expect(view.stepped(null, none, 1, 0, false)).toEqual({ query: 499, key: 499 });
    expect(view.stepped(null, { query: 7, key: 8 }, 1, 0, false)).toEqual({ query: 7, key: 8 });
    expect(view.stepped({ query: 7, key: 8 }, none, 1, 0, false)).toEqual({ query: 7, key: 133 });
    expect(view.stepped({ query: 7, key: 8 }, none, 0, 1, true)).toEqual({ query: 8, key: 8 });
    expect(view.stepped({ query: 7, key: 8 }, none, 0, -1, false)).toEqual({ query: 0, key: 8 });
  });

  it("follows a pair that is out of view", () => {
    const view = opened([map("0", 1000)]);
    view.open(part);
    expect(view.follow({ query: 150, key: 350 })).toBe(false);
    expect(view.follow({ query: 900, key: 350 })).toBe(true);
    view.spread();
    const [start, stop] = viewOf(view.main[0] as View["main"][0]).queries;
    expect(start < 900 && 900 < stop).toBe(true);
  });
});
