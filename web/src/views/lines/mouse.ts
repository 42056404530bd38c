/**
 * Whether the mouse points, or only rests where it was: words that scroll under it are not pointed at while the keyboard is
 * used. After a key it counts again when it has moved; browsers tell of a word that came under it as if it had.
 */
type Told = Pick<PointerEvent, "pointerType" | "screenX" | "screenY">;

export class Mouse {
  private resting = false;
  private at: readonly [x: number, y: number] | null = null;

  /** The keyboard is used. */
  rest(): void {
    this.resting = true;
  }

  /** Whether what is told of the mouse points at something. Fingers do not point: they choose. */
  counts({ pointerType, screenX, screenY }: Told): boolean {
    if (pointerType === "touch") return false;
    const moved = this.at !== null && (this.at[0] !== screenX || this.at[1] !== screenY);
    this.at = [screenX, screenY];
    if (moved) this.resting = false;
    return !this.resting;
  }
}
