/** Which heads of a layer are drawn: several, one, or the mean of all. A link says it in two fields. */
import type { Looked } from "../../look.svelte";
import type { Head } from "../../source/contract";
import { toggled } from "./selection";

/** Nothing is chosen any more, of either text: what was chosen is of the other side. */
export const NONE_LOCKED = { locked: [], locked2: [] };

type Said = Pick<Looked, "drawn" | "head">;

/** The heads that are drawn, at least one; those that a site of `heads` heads does not have are left out. */
export function drawnHeads({ drawn, head }: Said, heads: number): Head[] {
  const there = [...new Set(drawn)].filter((one) => one < heads).sort((a, b) => a - b);
  if (there.length) return there;
  return [head === "mean" ? head : Math.min(head, heads - 1)];
}

/** With a head more, or less; the last one stays. */
export function withToggled(now: readonly Head[], head: number): Said {
  const numbers = now.filter((one): one is number => one !== "mean");
  const next = toggled(numbers, head);
  return next.length ? only(next) : only(numbers);
}

/** These heads and no others. */
export function only(heads: readonly number[]): Said {
  return heads.length === 1 ? { drawn: [], head: heads[0] as number } : { drawn: [...heads], head: heads[0] ?? "mean" };
}

/** The next or previous head by itself, round the end by way of the mean. */
export function stepped(now: readonly Head[], way: 1 | -1, heads: number): Said {
  const first = now[0] === "mean" || now[0] === undefined ? -1 : now[0];
  const from = way === 1 && now.length > 1 ? (now.at(-1) as number) : first;
  const next = ((from + 1 + way + heads + 1) % (heads + 1)) - 1;
  return next < 0 ? { drawn: [], head: "mean" } : only([next]);
}
