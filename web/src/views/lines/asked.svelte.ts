/**
 * The rows of what is in view or chosen, asked for one request after the other: a fast scroll passes over what it leaves
 * behind. Made while a component is, and gone with it.
 */
import { tick, untrack } from "svelte";
import { messageOf } from "../../parts/names";
import type { Head } from "../../source/contract";
import type { Row, Rows, Subject } from "./rows";

/** What is wanted now; each part is looked at by itself, when it changes. */
export interface Wanted {
  /** null: not known yet. */
  readonly subject: Subject | null;
  readonly heads: readonly Head[];
  readonly units: readonly number[];
  /** All units of a text that is short; null: it is not. */
  readonly short: readonly number[] | null;
}

export class Asked {
  private answered = $state(0);
  private busy = false;
  private gone = false;
  private request: AbortController | null = null;

  /** Of the wanted units, in each head, as far as they are there. */
  readonly found: readonly (readonly (Row | undefined)[])[] = $derived.by(() => {
    void this.answered;
    const { subject, heads, units } = this.wanted;
    return subject ? units.map((unit) => heads.map((head) => this.rows.find(subject, head, unit))) : [];
  });
  readonly complete: boolean = $derived(
    this.found.length > 0 && this.found.every((unit) => unit.every((row) => row !== undefined)),
  );
  /** The largest weight of a short text, from all of its rows; 0 until they are there. */
  largest = $state(0);

  constructor(
    private readonly rows: Rows,
    private readonly wanted: Wanted,
    /** Called with what went wrong; "" when it does not any more. */
    private readonly says: (failed: string) => void,
  ) {
    $effect(() => () => {
      this.gone = true;
    });
    $effect(() => {
      void [wanted.subject, wanted.heads];
      return () => this.request?.abort();
    });
    $effect(() => {
      void [wanted.subject, wanted.heads, wanted.units];
      untrack(() => void this.pump());
    });
  }

  /** The rows of any units, each with those of all heads. */
  async all(units: readonly number[]): Promise<Map<number, readonly Row[]>> {
    const { heads } = this.wanted;
    const subject = this.wanted.subject as Subject;
    await this.rows.fetch(subject, heads, units);
    return new Map(units.map((unit) => [unit, heads.map((head) => this.rows.find(subject, head, unit) as Row)]));
  }

  private async pump(): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    try {
      while (!this.gone) {
        const { subject, heads, units } = this.wanted;
        if (!subject) break;
        this.request = new AbortController();
        try {
          if (!(await this.rows.fetch(subject, heads, units, this.request.signal))) break;
          this.says("");
          this.answered++;
        } catch (error) {
          if (error instanceof DOMException && error.name === "AbortError") continue;
          this.says(messageOf(error));
          break;
        }
        await tick();
      }
    } finally {
      this.busy = false;
    }
  }

  /** Learn `largest`: to be run when what is wanted has changed. The returned function gives it up. */
  measure(): (() => void) | undefined {
    const { subject, heads, short } = this.wanted;
    this.largest = 0;
    if (!this.complete || !subject || !short) return undefined;
    const given = new AbortController();
    this.rows.fetch(subject, heads, short, given.signal).then(
      () => {
        if (given.signal.aborted) return;
        const first = (unit: number) => heads.map((head) => this.rows.find(subject, head, unit)?.weights[0] ?? 0);
        this.largest = Math.max(0, ...short.flatMap(first));
      },
      () => {}, // what is in view is asked for too, and says what failed
    );
    return () => given.abort();
  }
}
