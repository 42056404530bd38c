/** What is known of heads: their statistics and roles, their order by one of them, and what all of it says in words. */
import type { Place } from "../../look.svelte";
import { listed } from "../../model/words";
import { counted, number, percent } from "../../parts/names";
import type { HeadsAnswer, RolesAnswer, TextInfo } from "../../source/contract";

type Statistic = HeadsAnswer["statistics"][number];

/** A text with what was answered about its heads. */
export interface Facts {
  readonly text: TextInfo;
  readonly heads: HeadsAnswer;
  /** null: not there yet, or not to be had. */
  readonly roles: RolesAnswer | null;
}

export const ROLE = "role";

/** Texts with scales that hold for all of them. */
export function alignedScales(texts: readonly Facts[]): Facts[] {
  return texts.map((facts) => {
    const statistics = facts.heads.statistics.map((one) => {
      const same = texts.flatMap(({ heads }) => heads.statistics.filter(({ name }) => name === one.name));
      return {
        ...one,
        least: Math.min(...same.map(({ least }) => least)),
        most: Math.max(...same.map(({ most }) => most)),
      };
    });
    return { ...facts, heads: { ...facts.heads, statistics } };
  });
}

/** The number of a statistic by its name; -1 if there is none. */
export function statisticOf({ heads }: Facts, name: string): number {
  return heads.statistics.findIndex((one) => one.name === name);
}

/** A head's value; of "mean" the mean over the layer's heads. NaN where it is not known. */
export function worthOf({ heads, text }: Facts, { site, head }: Place, statistic: number): number {
  const [, most = 0, count = 0] = heads.values.shape;
  const at = (one: number) => heads.values.data[(site * most + one) * count + statistic] ?? Number.NaN;
  if (head !== "mean") return at(head);
  const all = (text.sites[site]?.heads ?? []).map((_, one) => at(one));
  return all.reduce((sum, one) => sum + one, 0) / all.length;
}

/** A head's role, "" for none or where roles are not known. */
export function roleOf({ roles }: Facts, { site, head }: Place): string {
  return head === "mean" ? "" : (roles?.roles[site]?.[head] ?? "");
}

export function roleShare({ roles }: Facts, { site, head }: Place): number {
  return head === "mean" ? 0 : (roles?.shares[site]?.[head] ?? 0);
}

/** A value as it is written: "1.2 nats"; shares as percentages. */
export function written(statistic: Statistic, value: number): string {
  if (!Number.isFinite(value)) return "not known";
  if (statistic.unit === "" && statistic.most <= 1.0001) return percent(value);
  const said = value > 0 && value < 0.001 ? "<0.001" : number(value);
  const unit = statistic.unit === "tokens" && said === "1" ? "token" : statistic.unit;
  return `${said}${unit ? ` ${unit}` : ""}`;
}

/** Where a value is between the ends of its scale, 0 to 1; null if it is not known. */
export function placed({ least, most }: Statistic, value: number): number | null {
  if (!Number.isFinite(value)) return null;
  return most > least ? Math.min(Math.max((value - least) / (most - least), 0), 1) : 0;
}

/** All heads in the order of a statistic, the largest first ("-entropy": the smallest), or by role. Unknown ones are last. */
export function ordered(facts: Facts, order: string): Place[] {
  const places = facts.text.sites.flatMap(({ heads }, site) => heads.map((_, head): Place => ({ site, head })));
  if (order === ROLE) return byRole(facts, places);
  const ascending = order.startsWith("-");
  const statistic = statisticOf(facts, ascending ? order.slice(1) : order);
  if (statistic < 0) return places;
  const key = new Map(places.map((place) => [place, worthOf(facts, place, statistic) * (ascending ? 1 : -1)]));
  const known = (place: Place) => Number.isFinite(key.get(place));
  return places.sort(
    (a, b) => Number(known(b)) - Number(known(a)) || (known(a) ? (key.get(a) as number) - (key.get(b) as number) : 0),
  );
}

function byRole(facts: Facts, places: Place[]): Place[] {
  const names = [...roleNames(facts), ""];
  return places.sort(
    (a, b) =>
      names.indexOf(roleOf(facts, a)) - names.indexOf(roleOf(facts, b)) || roleShare(facts, b) - roleShare(facts, a),
  );
}

/** The roles that heads have, by how many have them. */
export function roleNames(facts: Facts): string[] {
  const counts = roleCounts(facts);
  return [...counts.keys()].sort((a, b) => (counts.get(b) as number) - (counts.get(a) as number) || a.localeCompare(b));
}

/** How many heads have each role. */
export function roleCounts({ roles }: Facts): Map<string, number> {
  const counts = new Map<string, number>();
  for (const role of roles?.roles.flat() ?? []) if (role) counts.set(role, (counts.get(role) ?? 0) + 1);
  return counts;
}

/** "layer 3, head 5", by the model's own number. */
export function nameOf({ text }: Facts, { site, head }: Place): string {
  const of = text.sites[site];
  return head === "mean"
    ? `${of?.label}, mean of ${counted(of?.heads.length ?? 0, "head")}`
    : `${of?.label}, head ${of?.heads[head] ?? head}`;
}

/** A head in one line, for who cannot see it. */
export function described(facts: Facts, place: Place): string {
  const said = facts.heads.statistics.map((one, i) => `${one.label} ${written(one, worthOf(facts, place, i))}`);
  const role = roleOf(facts, place);
  return [nameOf(facts, place), ...said, ...(role ? [`role: ${role}`] : [])].join(", ");
}

/** The most important facts about all heads, in sentences. */
export function summary(facts: Facts): string {
  const { text } = facts;
  const heads = text.sites.reduce((sum, site) => sum + site.heads.length, 0);
  const said = [`${text.name}: ${counted(heads, "head")} in ${counted(text.sites.length, "attention call")}.`];
  const entropy = statisticOf(facts, "entropy");
  const spread = ordered(facts, "entropy").filter((place) => Number.isFinite(worthOf(facts, place, entropy)));
  if (entropy >= 0 && spread.length) said.push(spreadOf(facts, entropy, spread));
  const sink = statisticOf(facts, "sink");
  const mostly = spread.filter((place) => worthOf(facts, place, sink) > 0.5).length;
  if (sink >= 0 && heads === 1)
    said.push(`It puts ${mostly ? "more" : "no more"} than half of its weight on the first and special tokens.`);
  else if (sink >= 0)
    said.push(
      `${mostly} of them ${mostly === 1 ? "puts more than half of its" : "put more than half of their"} weight on the first and special tokens.`,
    );
  const counts = [...roleCounts(facts)].sort((a, b) => b[1] - a[1]);
  if (counts.length)
    said.push(
      `A head’s role is where its weight stands out most from equal weights, be it less than half of it: ${listed(
        counts.map(([role, count]) => `${role} ${count}`),
        9,
      )}.`,
    );
  return said.join(" ");
}

/** Where weight is most spread and where least, of heads in that order. */
function spreadOf(facts: Facts, entropy: number, spread: readonly Place[]): string {
  const [most, least] = [spread[0] as Place, spread.at(-1) as Place];
  const value = (place: Place) => written(facts.heads.statistics[entropy] as Statistic, worthOf(facts, place, entropy));
  if (spread.length === 1) return `The entropy of ${nameOf(facts, most)} is ${value(most)}.`;
  if (value(most) === value(least)) return `Weight is equally spread in all of them (${value(most)}).`;
  return `Weight is most spread in ${nameOf(facts, most)} (${value(most)}) and least in ${nameOf(facts, least)} (${value(least)}).`;
}

/** Columns and rows of a table of all heads. */
export function tableOf(facts: Facts): { columns: string[]; rows: (string | number)[][] } {
  const { text, heads } = facts;
  const columns = ["text", "site", "head", ...heads.statistics.map((one) => one.name), "role", "role_share"];
  const rows = text.sites.flatMap((site, number) =>
    site.heads.map((name, head) => {
      const place = { site: number, head };
      const values = heads.statistics.map((_, i) => worthOf(facts, place, i));
      return [
        text.id,
        site.name,
        name,
        ...values,
        roleOf(facts, place),
        facts.roles ? roleShare(facts, place) : Number.NaN,
      ];
    }),
  );
  return { columns, rows };
}
