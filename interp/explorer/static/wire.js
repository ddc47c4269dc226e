/* An answer is one run of bytes: the length of its header, the header in JSON, then arrays. */
const ARRAY_KINDS = { float32: Float32Array, float64: Float64Array, int32: Int32Array };

export class AskError extends Error {
  constructor(message, name) {
    super(message);
    this.name = name;
  }
}

export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  for (const { name, type, shape, at } of header.arrays) {
    const size = shape.reduce((a, b) => a * b, 1);
    const values = new ARRAY_KINDS[type](buffer, 4 + length + at, size);
    values.shape = shape;
    arrays[name] = values;
  }
  return { said: header.said, arrays };
}
