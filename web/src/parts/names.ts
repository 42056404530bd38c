/** How things are called on screen. */
import type { View } from "../look.svelte";
import type { Head, SiteInfo } from "../source/contract";

export const VIEW_NAMES: Record<View, { name: string; says: string }> = {
  heads: { name: "Heads", says: "All heads of all layers at a glance." },
  pattern: {
    name: "Pattern",
    says: "One head's map: each row is a token that looks, each column one that is looked at.",
  },
  lines: { name: "Lines", says: "Who looks at whom: the stronger the line, the more attention." },
  inside: { name: "Inside a head", says: "How one weight comes about, step by step, in the model's own numbers." },
  meaning: { name: "Meaning", says: "How a word's meaning moves through the layers, and what moved it." },
  cost: { name: "Cost", says: "What attention costs as the context grows." },
};

/** "1 head", "12 heads". */
export function counted(count: number, one: string): string {
  return `${count} ${one}${count === 1 ? "" : "s"}`;
}

/** "head 5", by the model's own number, or "mean of 12 heads". */
export function headName(site: SiteInfo, head: Head): string {
  return head === "mean" ? `mean of ${counted(site.heads.length, "head")}` : `head ${site.heads[head] ?? head}`;
}

/** What an error says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A weight as a percentage; a trace of weight is never rounded to nothing. */
export function percent(weight: number): string {
  if (!Number.isFinite(weight)) return "not a number";
  if (weight > 0 && weight < 0.0005) return "<0.1%";
  const share = weight * 100;
  return `${share.toFixed(share !== 0 && Math.abs(share) < 10 ? 1 : 0)}%`;
}

/** A number with three significant digits, as people write it. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value < 0 ? "−∞" : "∞";
  const size = Math.abs(value);
  const text =
    size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  return text.replace("-", "−");
}
