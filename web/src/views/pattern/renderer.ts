/**
 * Maps drawn by WebGL2: one context for all of them, one texture and one draw call per tile.
 *
 * A texture holds the weights themselves, so tone and palette change without a new upload, and a difference is taken in
 * the shader. Positions reach the shader relative to a token that is a whole number, which keeps them exact at any length.
 */
import { ENTRIES, type Scale } from "../../model/colour";
import type { Range } from "../../source/contract";
import { eachTile, emptyPatch, NOT_A_NUMBER, type Painter, patch, type Scene } from "./scene";
import type { Tile } from "./tiles";

const VERTEX = `#version 300 es
uniform vec4 u_quad;   // left, top, right, bottom in clip space
uniform vec4 u_start;  // where the left and upper edge is in the tile, and in the other: in cells or tokens from u_base
uniform vec4 u_span;   // how far it is to the other edge
out vec4 v_at;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  v_at = u_start + corner.xyxy * u_span;
  gl_Position = vec4(mix(u_quad.xy, u_quad.zw, corner), 0.0, 1.0);
}`;

// UNEVEN: cells of a whole number of tokens that is not the same for all; see cellOf in tiles.ts. Others are found without a
// division, which counts where there is no graphics card.
const FRAGMENT = `
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D u_tile;
uniform sampler2D u_other;
uniform sampler2D u_table;
uniform ivec4 u_base;    // a whole cell (UNEVEN: token): column and row in the tile, and in the other
uniform uvec4 u_length;  // tokens of the tile's sides, and of the other's
uniform uvec4 u_cells;
uniform vec2 u_ends;     // entry = size (LOGARITHMIC: its log2) * x + y, before it is brought between the table's ends
uniform vec3 u_nothing;
uniform vec3 u_odd;
uniform vec3 u_even;
in vec4 v_at;
out vec4 colour;

const float LAST = ${(ENTRIES - 1).toFixed(1)};

#ifdef UNEVEN
ivec2 cell(vec2 at, ivec2 base, uvec2 length, uvec2 cells) {
  uvec2 token = uvec2(base + ivec2(at));
  return ivec2(min(((token + 1u) * cells - 1u) / length, cells - 1u));
}
#else
// The last pixel of a tile may round to the cell behind it.
#define cell(at, base, length, cells) min(base + ivec2(at), ivec2(cells) - 1)
#endif

void main() {
  float weight = texelFetch(u_tile, cell(v_at.xy, u_base.xy, u_length.xy, u_cells.xy), 0).r;
  bool nothing = weight == 0.0;
#ifdef SIGNED
  float other = texelFetch(u_other, cell(v_at.zw, u_base.zw, u_length.zw, u_cells.zw), 0).r;
  nothing = nothing && other == 0.0;
  weight -= other;
#endif
  float size = abs(weight);
#ifdef LOGARITHMIC
  float entry = clamp(log2(max(size, 1e-38)) * u_ends.x + u_ends.y, 0.0, LAST);
#else
  float entry = clamp(size * u_ends.x + u_ends.y, 0.0, LAST);
#endif
#ifdef SIGNED
  entry = 0.5 * (LAST + sign(weight) * entry);
#endif
  colour = texelFetch(u_table, ivec2(int(entry + 0.5), 0), 0);
  if (nothing) colour.rgb = u_nothing;
  // Not a number: asked by its bits, for a comparison may be optimized away.
  if ((floatBitsToUint(weight) & 0x7fffffffu) > 0x7f800000u) {
    colour.rgb = fract((gl_FragCoord.x + gl_FragCoord.y) * 0.125) < 0.5 ? u_odd : u_even;
  }
}`;

const UNIFORMS = [
  "u_quad",
  "u_start",
  "u_span",
  "u_tile",
  "u_other",
  "u_table",
  "u_base",
  "u_length",
  "u_cells",
  "u_ends",
  "u_nothing",
  "u_odd",
  "u_even",
] as const;

/** A shader for a kind of map, with the places of its parameters. */
interface Program {
  readonly program: WebGLProgram;
  readonly at: Record<(typeof UNIFORMS)[number], WebGLUniformLocation | null>;
  /** What its scale and ground were set for. */
  scene: Scene | null;
}

export class WebglPainter implements Painter {
  private programs = new Map<string, Program>();
  private textures = new Map<Tile, WebGLTexture>();
  private table: WebGLTexture | null = null;
  private shown: Scale | null = null;
  private ready = false;
  private readonly patch = emptyPatch();

  /** null where the browser has no WebGL2. `again` is called when a lost context has come back. */
  static on(canvas: HTMLCanvasElement, again: () => void): WebglPainter | null {
    const gl = canvas.getContext("webgl2", {
      alpha: false,
      antialias: false,
      depth: false,
      powerPreference: "low-power",
    });
    return gl && new WebglPainter(canvas, gl, again);
  }

  private constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly gl: WebGL2RenderingContext,
    private readonly again: () => void,
  ) {
    canvas.addEventListener("webglcontextlost", this.lost);
    canvas.addEventListener("webglcontextrestored", this.restored);
    this.begin();
  }

  draw(scene: Scene): void {
    const { gl } = this;
    if (!this.ready || gl.isContextLost()) return;
    const [width, height] = [Math.round(scene.size.width * scene.ratio), Math.round(scene.size.height * scene.ratio)];
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    gl.viewport(0, 0, width, height);
    const [red, green, blue] = scene.ground;
    gl.clearColor(red / 255, green / 255, blue / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    this.uploadTable(scene.scale);
    for (const panel of scene.panels) {
      eachTile(panel, (tile, other) => {
        if (patch(this.patch, panel, tile, other)) this.drawPatch(scene, tile, other);
      });
    }
  }

  drop(tile: Tile): void {
    this.gl.deleteTexture(this.textures.get(tile) ?? null);
    this.textures.delete(tile);
  }

  destroy(): void {
    this.canvas.removeEventListener("webglcontextlost", this.lost);
    this.canvas.removeEventListener("webglcontextrestored", this.restored);
    this.gl.getExtension("WEBGL_lose_context")?.loseContext(); // a browser keeps only a few contexts
  }

  private readonly lost = (event: Event): void => {
    event.preventDefault(); // else it does not come back
    this.ready = false;
  };

  private readonly restored = (): void => {
    this.begin();
    this.again();
  };

  private begin(): void {
    this.programs = new Map();
    this.textures = new Map();
    this.shown = null;
    this.table = newTexture(this.gl, 2);
    this.ready = true;
  }

  private uploadTable(scale: Scale): void {
    if (scale === this.shown) return;
    const { gl } = this;
    this.shown = scale;
    gl.activeTexture(gl.TEXTURE2);
    gl.bindTexture(gl.TEXTURE_2D, this.table);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, ENTRIES, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, scale.table);
  }

  /** The shader for a scene's scale and for such cells, made when it is first needed, ready to draw. */
  private use(scene: Scene, uneven: boolean): Program {
    const { scale } = scene;
    const kind = [scale.signed && "SIGNED", scale.logarithmic && "LOGARITHMIC", uneven && "UNEVEN"].filter(
      Boolean,
    ) as string[];
    const name = kind.join(" ");
    const program = this.programs.get(name) ?? link(this.gl, kind);
    this.programs.set(name, program);
    this.gl.useProgram(program.program);
    if (program.scene !== scene) setScene(this.gl, program, scene);
    return program;
  }

  private drawPatch(scene: Scene, tile: Tile, other: Tile | null): void {
    const { gl, patch } = this;
    const { size } = scene;
    const two = other ?? tile;
    const uneven = !isEven(tile) || !isEven(two);
    const { at } = this.use(scene, uneven);
    this.bind(0, tile);
    this.bind(1, two);
    const [x, y] = [
      along(patch.key, patch.keys, tile.keys, tile.columns, uneven),
      along(patch.query, patch.queries, tile.queries, tile.rows, uneven),
    ];
    const [x2, y2] = [
      along(patch.key, patch.keys, two.keys, two.columns, uneven),
      along(patch.query, patch.queries, two.queries, two.rows, uneven),
    ];
    gl.uniform4f(
      at.u_quad,
      (2 * patch.left) / size.width - 1,
      1 - (2 * patch.top) / size.height,
      (2 * patch.right) / size.width - 1,
      1 - (2 * patch.bottom) / size.height,
    );
    gl.uniform4f(at.u_start, x.start, y.start, x2.start, y2.start);
    gl.uniform4f(at.u_span, x.span, y.span, x2.span, y2.span);
    gl.uniform4i(at.u_base, x.base, y.base, x2.base, y2.base);
    gl.uniform4ui(at.u_cells, tile.columns, tile.rows, two.columns, two.rows);
    if (uneven)
      gl.uniform4ui(at.u_length, length(tile.keys), length(tile.queries), length(two.keys), length(two.queries));
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  private bind(unit: 0 | 1, tile: Tile): void {
    const { gl } = this;
    const known = this.textures.get(tile);
    if (known) {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, known);
      return;
    }
    this.textures.set(tile, newTexture(gl, unit));
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.R32F, tile.columns, tile.rows, 0, gl.RED, gl.FLOAT, tile.weights);
  }
}

/** A texture whose texels are read one by one, bound to a unit. */
function newTexture(gl: WebGL2RenderingContext, unit: number): WebGLTexture {
  const texture = gl.createTexture();
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, texture);
  for (const [name, value] of [
    [gl.TEXTURE_MIN_FILTER, gl.NEAREST],
    [gl.TEXTURE_MAG_FILTER, gl.NEAREST],
    [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE],
    [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE],
  ] as const) {
    gl.texParameteri(gl.TEXTURE_2D, name, value);
  }
  return texture;
}

const length = ([start, stop]: Range) => stop - start;

/** Whether all cells of a tile hold as many tokens. */
function isEven({ queries, keys, rows, columns }: Tile): boolean {
  return length(queries) % rows === 0 && length(keys) % columns === 0;
}

/** What is seen of a side: from where on, in cells (or tokens) from a whole one, and how many. */
function along(
  from: number,
  tokens: number,
  side: Range,
  cells: number,
  uneven: boolean,
): { base: number; start: number; span: number } {
  const cell = uneven ? 1 : length(side) / cells;
  const at = (from - side[0]) / cell;
  const base = Math.floor(at);
  return { base, start: at - base, span: tokens / cell };
}

/** Set what is the same for all tiles of a scene. */
function setScene(gl: WebGL2RenderingContext, program: Program, scene: Scene): void {
  const { at } = program;
  const { floor, top, logarithmic } = scene.scale;
  const factor = (ENTRIES - 1) / (logarithmic ? Math.log2(top / floor) : top);
  gl.uniform2f(at.u_ends, factor, logarithmic ? -Math.log2(floor) * factor : 0);
  gl.uniform3f(at.u_nothing, scene.nothing[0] / 255, scene.nothing[1] / 255, scene.nothing[2] / 255);
  program.scene = scene;
}

function link(gl: WebGL2RenderingContext, kind: readonly string[]): Program {
  const program = gl.createProgram();
  const fragment = ["#version 300 es", ...kind.map((name) => `#define ${name}`), FRAGMENT].join("\n");
  for (const [type, source] of [
    [gl.VERTEX_SHADER, VERTEX],
    [gl.FRAGMENT_SHADER, fragment],
  ] as const) {
    const shader = gl.createShader(type) as WebGLShader;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) {
      throw new Error(`The map's shader was refused by this browser: ${gl.getShaderInfoLog(shader)}`);
    }
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  const at = Object.fromEntries(UNIFORMS.map((name) => [name, gl.getUniformLocation(program, name)])) as Program["at"];
  gl.uniform1i(at.u_tile, 0);
  gl.uniform1i(at.u_other, 1);
  gl.uniform1i(at.u_table, 2);
  const [odd, even] = NOT_A_NUMBER.map((colour) => colour.map((part) => part / 255));
  gl.uniform3fv(at.u_odd, odd as number[]);
  gl.uniform3fv(at.u_even, even as number[]);
  return { program, at, scene: null };
}
