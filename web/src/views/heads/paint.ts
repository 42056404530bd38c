/** The heads of a text on one canvas, and as a drawing. */

import type { Place } from "../../look.svelte";
import type { Colour, PaletteName, Tone } from "../../model/colour";
import { cssOf } from "../../parts/theme";
import { type Facts, nameOf, placed, ROLE, roleNames, roleOf, statisticOf, worthOf, written } from "./facts";
import type { Cell, Plan } from "./layout";
import { baseScale, pixelsOf, thumbOf } from "./thumbs";

/** Colours of the page, and of what frames mean. */
export interface Inks {
  ink: Colour;
  muted: Colour;
  ground: Colour;
  line: Colour;
  accent: Colour;
  /** From the least to the most of a statistic. */
  ramp: readonly [Colour, Colour];
  /** Of the roles, by their order among `roleNames`. */
  roles: readonly Colour[];
}

/** What is drawn besides the maps. */
export interface Marks {
  /** The statistic, or the role, that colours the frames; "" for none. */
  colour: string;
  /** The statistic whose value is written, where there is room; "" for none. */
  value: string;
  /** A role that alone is drawn at full strength; "" for all. */
  only: string;
  chosen: readonly Place[];
}

const FAINT = 0.16;

/** The maps of a text as small pictures, side by side: pixel for cell. */
export class Sheet {
  private readonly canvas = document.createElement("canvas");
  private readonly places = new Map<string, readonly [x: number, y: number]>();
  readonly side: number;

  constructor(facts: Facts, tone: Tone, palette: PaletteName) {
    const { heads, text } = facts;
    const [sites = 0, most = 0, side = 1] = heads.thumbs.shape;
    this.side = side;
    this.canvas.width = (most + 1) * side;
    this.canvas.height = sites * side;
    const context = this.canvas.getContext("2d") as CanvasRenderingContext2D;
    const scale = baseScale(tone, palette);
    text.sites.forEach(({ heads: kept }, site) => {
      for (const head of ["mean" as const, ...kept.keys()]) {
        const thumb = thumbOf(heads, { site, head }, kept.length);
        if (!thumb) continue;
        const at = [(head === "mean" ? 0 : head + 1) * side, site * side] as const;
        context.putImageData(new ImageData(pixelsOf(thumb, tone, scale), side, side), ...at);
        this.places.set(`${site} ${head}`, at);
      }
    });
  }

  /** Draw a head's map. Whether there is one. */
  draw(context: CanvasRenderingContext2D, { site, head }: Place, x: number, y: number, size: number): boolean {
    const at = this.places.get(`${site} ${head}`);
    if (!at) return false;
    // Cells that are larger than a pixel stay sharp; smaller ones are mixed, so that none is passed over.
    context.imageSmoothingEnabled = size * context.getTransform().a < this.side;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, at[0], at[1], this.side, this.side, x, y, size, size);
    return true;
  }

  /** A head's map as a picture for a drawing; "" if there is none. */
  url(place: Place): string {
    const at = this.places.get(`${place.site} ${place.head}`);
    if (!at) return "";
    const one = document.createElement("canvas");
    one.width = one.height = this.side;
    const context = one.getContext("2d") as CanvasRenderingContext2D;
    context.drawImage(this.canvas, at[0], at[1], this.side, this.side, 0, 0, this.side, this.side);
    return one.toDataURL();
  }
}

/** The colour of a head's frame; null for none. */
export function frameOf(facts: Facts, place: Place, { colour }: Marks, inks: Inks): Colour | null {
  if (colour === ROLE) return inks.roles[roleNames(facts).indexOf(roleOf(facts, place))] ?? null;
  const statistic = statisticOf(facts, colour);
  if (statistic < 0) return null;
  const share = placed(
    facts.heads.statistics[statistic] as Facts["heads"]["statistics"][number],
    worthOf(facts, place, statistic),
  );
  return share === null ? null : mix(inks.ramp[0], inks.ramp[1], share);
}

export function mix(a: Colour, b: Colour, share: number): Colour {
  return [0, 1, 2].map((i) =>
    Math.round((a[i] as number) * (1 - share) + (b[i] as number) * share),
  ) as unknown as Colour;
}

/** Draw all heads. The context is in CSS pixels of the plan. */
export function paint(
  context: CanvasRenderingContext2D,
  facts: Facts,
  plan: Plan,
  sheet: Sheet,
  marks: Marks,
  inks: Inks,
): void {
  context.clearRect(0, 0, plan.width, plan.height);
  const frames = new Map(roleNames(facts).map((name, i) => [name, inks.roles[i] ?? null]));
  for (const cell of plan.cells) {
    const frame = marks.colour === ROLE ? (frames.get(roleOf(facts, cell)) ?? null) : frameOf(facts, cell, marks, inks);
    context.globalAlpha = marks.only && roleOf(facts, cell) !== marks.only ? FAINT : 1;
    paintCell(context, cell, plan, sheet, { frame, inks, chosen: isChosen(cell, marks) });
    if (plan.named) paintName(context, facts, cell, plan, marks, inks);
  }
  context.globalAlpha = 1;
}

export function isChosen({ site, head }: Place, { chosen }: Marks): boolean {
  return chosen.some((one) => one.site === site && one.head === head);
}

function paintCell(
  context: CanvasRenderingContext2D,
  { site, head, x, y }: Cell,
  { size, frame: width }: Plan,
  sheet: Sheet,
  { frame, inks, chosen }: { frame: Colour | null; inks: Inks; chosen: boolean },
): void {
  context.fillStyle = cssOf(frame ?? inks.line);
  const border = frame ? 0 : width - 1; // a thin line where there is no colour
  context.fillRect(x + border, y + border, size - 2 * border, size - 2 * border);
  const inner = size - 2 * width;
  if (!sheet.draw(context, { site, head }, x + width, y + width, inner)) {
    context.fillStyle = cssOf(inks.ground);
    context.fillRect(x + width, y + width, inner, inner);
  }
  if (!chosen) return;
  const radius = Math.min(9, Math.max(5, size / 6));
  context.strokeStyle = cssOf(inks.accent);
  context.lineWidth = Math.max(2, width);
  context.strokeRect(x + 1, y + 1, size - 2, size - 2);
  const [cx, cy] = [x + size - radius, y + radius];
  context.fillStyle = cssOf(inks.accent);
  context.beginPath();
  context.arc(cx, cy, radius, 0, 2 * Math.PI);
  context.fill();
  context.strokeStyle = cssOf(inks.ground);
  context.lineWidth = 1.8;
  context.beginPath();
  context.moveTo(cx - radius * 0.45, cy);
  context.lineTo(cx - radius * 0.1, cy + radius * 0.38);
  context.lineTo(cx + radius * 0.48, cy - radius * 0.38);
  context.stroke();
}

function paintName(
  context: CanvasRenderingContext2D,
  facts: Facts,
  cell: Cell,
  plan: Plan,
  marks: Marks,
  inks: Inks,
): void {
  context.fillStyle = cssOf(inks.muted);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(shortName(facts, cell, plan, marks), cell.x + plan.size / 2, cell.y + plan.size + 8, plan.pitch);
}

/** "3·5": layer and head, with a value where it fits. */
function shortName(facts: Facts, { site, head }: Cell, { pitch }: Plan, { value }: Marks): string {
  const of = facts.text.sites[site];
  const layer = of?.label.match(/\d+/)?.[0] ?? of?.label ?? "";
  const name = `${layer}·${head === "mean" ? "mean" : (of?.heads[head] ?? head)}`;
  const statistic = statisticOf(facts, value);
  if (statistic < 0 || pitch < 84) return name;
  const said = written(
    facts.heads.statistics[statistic] as Facts["heads"]["statistics"][number],
    worthOf(facts, { site, head }, statistic),
  );
  return `${name}  ${said.replace(/ (nats|tokens?)$/, "")}`;
}

const [MARGIN, TITLE] = [16, 44];

/** All heads as an SVG: the maps are pictures in it, names are text. */
export function svgOf(
  texts: readonly { facts: Facts; plan: Plan; sheet: Sheet }[],
  marks: Marks,
  inks: Inks,
  legend: string,
): string {
  let x = MARGIN;
  const bodies = texts.map(({ facts, plan, sheet }) => {
    const body = `<g transform="translate(${x} ${TITLE})">${gridAsSvg(facts, plan, sheet, marks, inks)}</g>${write(x, 26, facts.text.name, inks.ink, { size: 14, weight: 600 })}`;
    x += plan.width + 2 * MARGIN;
    return body;
  });
  const height = Math.ceil(TITLE + Math.max(...texts.map(({ plan }) => plan.height)) + 36);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${Math.ceil(x)}" height="${height}" viewBox="0 0 ${Math.ceil(x)} ${height}" font-family="system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"><rect width="100%" height="100%" fill="${cssOf(inks.ground)}"/>${bodies.join("")}${write(MARGIN, height - 14, legend, inks.muted, { size: 11 })}</svg>`;
}

function gridAsSvg(facts: Facts, plan: Plan, sheet: Sheet, marks: Marks, inks: Inks): string {
  const inner = plan.size - 2 * plan.frame;
  const cells = plan.cells.map((cell) => {
    const frame = frameOf(facts, cell, marks, inks);
    const border = frame ? 0 : plan.frame - 1;
    const faint = marks.only && roleOf(facts, cell) !== marks.only ? ` opacity="${FAINT}"` : "";
    const url = sheet.url(cell);
    const square = `<rect x="${cell.x + border}" y="${cell.y + border}" width="${plan.size - 2 * border}" height="${plan.size - 2 * border}" fill="${cssOf(frame ?? inks.line)}"/>`;
    const map =
      url &&
      `<image x="${cell.x + plan.frame}" y="${cell.y + plan.frame}" width="${inner}" height="${inner}" preserveAspectRatio="none" style="image-rendering:pixelated" href="${url}"/>`;
    const name = plan.named
      ? write(cell.x + plan.size / 2, cell.y + plan.size + 11, shortName(facts, cell, plan, marks), inks.muted, {
          size: 10,
          anchor: "middle",
        })
      : "";
    return `<g${faint}><title>${escaped(nameOf(facts, cell))}</title>${square}${map}${name}</g>`;
  });
  const headings = plan.left
    ? plan.rows.map((row, site) => {
        const cell = plan.cells[row[0] as number] as Cell;
        return write(plan.left - 8, cell.y + plan.size / 2 + 4, facts.text.sites[site]?.label ?? "", inks.muted, {
          size: 11,
          anchor: "end",
        });
      })
    : [];
  const longest = plan.rows.reduce((most, row) => (row.length > most.length ? row : most), []);
  const numbers = plan.left
    ? longest.map((place) => {
        const { site, head, x } = plan.cells[place] as Cell;
        const said = head === "mean" ? "mean" : String(facts.text.sites[site]?.heads[head] ?? head);
        return write(x + plan.size / 2, plan.above - 6, said, inks.muted, { size: 11, anchor: "middle" });
      })
    : [];
  return cells.join("") + headings.join("") + numbers.join("");
}

function write(
  x: number,
  y: number,
  content: string,
  fill: Colour,
  { size, anchor = "start", weight = 400 }: { size: number; anchor?: string; weight?: number },
): string {
  return `<text x="${x}" y="${y}" font-size="${size}" font-weight="${weight}" text-anchor="${anchor}" fill="${cssOf(fill)}">${escaped(content)}</text>`;
}

function escaped(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
