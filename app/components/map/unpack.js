// One buffer: the header's length (uint32), the header as JSON, then planes of numbers, each at a multiple of 8 bytes.
const KINDS = { float32: Float32Array, uint8: Uint8Array, int32: Int32Array };

function unpack(bytes) {
  const view = bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes);
  const whole = view.byteOffset % 8 ? view.slice() : view;
  const length = new DataView(whole.buffer, whole.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(whole.subarray(4, 4 + length)));
  const planes = {};
  for (const [name, { dtype, shape, at }] of Object.entries(header.planes)) {
    planes[name] = new KINDS[dtype](whole.buffer, whole.byteOffset + 4 + length + at, shape.reduce((a, b) => a * b, 1));
  }
  return { ...header, planes };
}
