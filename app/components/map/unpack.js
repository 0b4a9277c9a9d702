// One buffer: the header's length (uint32), the header as JSON, then planes of numbers, each at a multiple of 8 bytes.
const KINDS = { float32: Float32Array, float16: Uint16Array, uint8: Uint8Array, int32: Int32Array };

// The float16 numbers whose bits are given, as Float32Array. All are weights: none is negative, and what is no number becomes 0.
function fromHalves(bits) {
  const numbers = new Float32Array(bits.length), raw = new Uint32Array(numbers.buffer);
  for (let at = 0; at < bits.length; at++) {
    const half = bits[at];
    if (half < 0x400) numbers[at] = half * 2 ** -24;
    else if (half <= 0x7c00) raw[at] = (half + (112 << 10)) << 13;
  }
  return numbers;
}

// The values whose bit is set, 0 elsewhere.
function where(bits, values) {
  const some = new Float32Array(values.length);
  for (let at = 0; at < values.length; at++) if ((bits[at >> 3] >> (at & 7)) & 1) some[at] = values[at];
  return some;
}

// A square of cells [height, width] from those at or below its diagonal, row by row; the others are 0.
function fromTriangle(values, [height, width]) {
  const cells = new Float32Array(height * width);
  for (let r = 0, from = 0; r < height; r++) {
    const count = Math.min(r + 1, width);
    cells.set(values.subarray(from, from + count), r * width);
    from += count;
  }
  return cells;
}

function unpack(bytes) {
  const view = bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes);
  const whole = view.byteOffset % 8 ? view.slice() : view;
  const length = new DataView(whole.buffer, whole.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(whole.subarray(4, 4 + length)));
  const planes = {};
  for (const [name, { dtype, shape, at }] of Object.entries(header.planes)) {
    const plane = new KINDS[dtype](whole.buffer, whole.byteOffset + 4 + length + at, shape.reduce((a, b) => a * b, 1));
    planes[name] = dtype === "float16" ? fromHalves(plane) : plane;
  }
  return { ...header, planes };
}
