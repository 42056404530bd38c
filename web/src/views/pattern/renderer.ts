/**
 * Maps drawn by WebGL2: one context for all of them, one texture and one draw call per tile.
 *
 * A texture holds the weights themselves, so tone and palette change without a new upload, and a difference is taken in
 * the shader. Positions reach the shader relative to a token that is a whole number, which keeps them exact at any length.
 */
import { ENTRIES, type Scale } from "../../model/colour";
import { eachTile, emptyPatch, NOT_A_NUMBER, type Painter, patch, type Scene } from "./scene";
import type { Tile } from "./tiles";

const VERTEX = `#version 300 es
uniform vec4 u_quad;    // left, top, right, bottom in clip space
uniform vec4 u_tokens;  // key and query at the left and upper edge, and how many there are
out vec2 v_token;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  v_token = u_tokens.xy + corner * u_tokens.zw;
  gl_Position = vec4(mix(u_quad.xy, u_quad.zw, corner), 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D u_tile;
uniform sampler2D u_other;
uniform sampler2D u_table;
uniform uvec4 u_base;    // the whole token that v_token counts from: key and query in the tile, and in the other
uniform uvec4 u_length;  // tokens of the tile's sides, and of the other's
uniform uvec4 u_cells;
uniform bool u_signed;
uniform bool u_logarithmic;
uniform vec2 u_ends;     // floor and top of the scale; log2 of them where it is logarithmic
uniform vec3 u_nothing;
uniform vec3 u_odd;
uniform vec3 u_even;
in vec2 v_token;
out vec4 colour;

// The cell that holds a token: see cellOf in tiles.ts.
uvec2 cell(uvec2 token, uvec2 length, uvec2 cells) {
  return min(((token + 1u) * cells - 1u) / length, cells - 1u);
}
bool unknown(float weight) {
  return (floatBitsToUint(weight) & 0x7fffffffu) > 0x7f800000u;
}
void main() {
  uvec2 token = uvec2(max(floor(v_token), 0.0));
  float weight = texelFetch(u_tile, ivec2(cell(u_base.xy + token, u_length.xy, u_cells.xy)), 0).r;
  float other = u_signed ? texelFetch(u_other, ivec2(cell(u_base.zw + token, u_length.zw, u_cells.zw)), 0).r : 0.0;
  if (unknown(weight) || unknown(other)) {
    bool odd = mod(gl_FragCoord.x + gl_FragCoord.y, 8.0) < 4.0;
    colour = vec4(odd ? u_odd : u_even, 1.0);
    return;
  }
  if (weight == 0.0 && other == 0.0) {
    colour = vec4(u_nothing, 1.0);
    return;
  }
  float difference = weight - other;
  float size = abs(difference);
  float place = u_logarithmic ? (log2(size) - u_ends.x) / (u_ends.y - u_ends.x) : size / u_ends.y;
  place = size > 0.0 ? clamp(place, 0.0, 1.0) : 0.0;
  if (u_signed) place = 0.5 + 0.5 * sign(difference) * place;
  colour = texelFetch(u_table, ivec2(int(round(place * ${(ENTRIES - 1).toFixed(1)})), 0), 0);
}`;

const UNIFORMS = [
  "u_quad",
  "u_tokens",
  "u_tile",
  "u_other",
  "u_table",
  "u_base",
  "u_length",
  "u_cells",
  "u_signed",
  "u_logarithmic",
  "u_ends",
  "u_nothing",
  "u_odd",
  "u_even",
] as const;

export class WebglPainter implements Painter {
  private program: WebGLProgram | null = null;
  private at = {} as Record<(typeof UNIFORMS)[number], WebGLUniformLocation | null>;
  private textures = new Map<Tile, WebGLTexture>();
  private table: WebGLTexture | null = null;
  private shown: Scale | null = null;
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
    if (gl.isContextLost() || !this.program) return;
    const [width, height] = [Math.round(scene.size.width * scene.ratio), Math.round(scene.size.height * scene.ratio)];
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    gl.viewport(0, 0, width, height);
    const [red, green, blue] = scene.ground;
    gl.clearColor(red / 255, green / 255, blue / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    this.useScale(scene.scale);
    gl.uniform3f(this.at.u_nothing, scene.nothing[0] / 255, scene.nothing[1] / 255, scene.nothing[2] / 255);
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
    this.program = null;
  };

  private readonly restored = (): void => {
    this.begin();
    this.again();
  };

  private begin(): void {
    const { gl } = this;
    this.textures = new Map();
    this.shown = null;
    this.program = link(gl);
    gl.useProgram(this.program);
    for (const name of UNIFORMS) this.at[name] = gl.getUniformLocation(this.program, name);
    gl.uniform1i(this.at.u_tile, 0);
    gl.uniform1i(this.at.u_other, 1);
    gl.uniform1i(this.at.u_table, 2);
    const [odd, even] = NOT_A_NUMBER.map((colour) => colour.map((part) => part / 255));
    gl.uniform3fv(this.at.u_odd, odd as number[]);
    gl.uniform3fv(this.at.u_even, even as number[]);
    this.table = newTexture(gl, 2);
    gl.activeTexture(gl.TEXTURE0);
  }

  private useScale(scale: Scale): void {
    if (scale === this.shown) return;
    const { gl } = this;
    this.shown = scale;
    gl.activeTexture(gl.TEXTURE2);
    gl.bindTexture(gl.TEXTURE_2D, this.table);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, ENTRIES, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, scale.table);
    gl.uniform1i(this.at.u_signed, scale.signed ? 1 : 0);
    gl.uniform1i(this.at.u_logarithmic, scale.logarithmic ? 1 : 0);
    if (scale.logarithmic) gl.uniform2f(this.at.u_ends, Math.log2(scale.floor), Math.log2(scale.top));
    else gl.uniform2f(this.at.u_ends, 0, scale.top);
  }

  private drawPatch({ size }: Scene, tile: Tile, other: Tile | null): void {
    const {
      gl,
      at,
      patch: { left, top, right, bottom, key, query, keys, queries },
    } = this;
    this.bind(0, tile);
    this.bind(1, other ?? tile);
    const two = other ?? tile;
    const [baseKey, baseQuery] = [Math.floor(key), Math.floor(query)];
    gl.uniform4f(
      at.u_quad,
      (2 * left) / size.width - 1,
      1 - (2 * top) / size.height,
      (2 * right) / size.width - 1,
      1 - (2 * bottom) / size.height,
    );
    gl.uniform4f(at.u_tokens, key - baseKey, query - baseQuery, keys, queries);
    gl.uniform4ui(
      at.u_base,
      baseKey - tile.keys[0],
      baseQuery - tile.queries[0],
      baseKey - two.keys[0],
      baseQuery - two.queries[0],
    );
    gl.uniform4ui(
      at.u_length,
      tile.keys[1] - tile.keys[0],
      tile.queries[1] - tile.queries[0],
      two.keys[1] - two.keys[0],
      two.queries[1] - two.queries[0],
    );
    gl.uniform4ui(at.u_cells, tile.columns, tile.rows, two.columns, two.rows);
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

function link(gl: WebGL2RenderingContext): WebGLProgram {
  const program = gl.createProgram();
  for (const [kind, source] of [
    [gl.VERTEX_SHADER, VERTEX],
    [gl.FRAGMENT_SHADER, FRAGMENT],
  ] as const) {
    const shader = gl.createShader(kind) as WebGLShader;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) {
      throw new Error(`The map's shader was refused by this browser: ${gl.getShaderInfoLog(shader)}`);
    }
  }
  gl.linkProgram(program);
  return program;
}
