// Decides with a DRIP model file in JavaScript, with ONNX Runtime Web, the build for browsers.
//
//     node decide.mjs model.onnx inputs.npy
//
// inputs.npy contains prepared inputs: float32, shape (n, *input shape). Prints one JSON line per input.

import { readFile } from "node:fs/promises";
import process from "node:process";

import * as ort from "onnxruntime-web";

const BATCH = 256; // bounds the memory for outputs; decisions do not depend on it

/** Shape and values of a NumPy file: float32, little-endian, C order. */
function parseNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.toString("latin1", 0, 6) !== "\x93NUMPY") throw new Error("not a NumPy file");
  const wide = bytes[6] > 1; // the length of the header has two bytes in version 1, four in later ones
  const start = wide ? 12 : 10;
  const end = start + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = bytes.toString("latin1", start, end);
  if (!/'descr': '<f4', 'fortran_order': False/.test(header)) {
    throw new Error(`not float32 in C order: ${header.trim()}; save the array with .astype(np.float32)`);
  }
  const shape = (header.match(/'shape': \(([^)]*)\)/)[1].match(/\d+/g) ?? []).map(Number);
  const n = shape.reduce((product, side) => product * side, 1);
  if (bytes.length - end !== 4 * n) throw new Error(`the file is damaged: ${bytes.length - end} bytes of values, not ${4 * n}`);
  return { shape, values: new Float32Array(bytes.buffer.slice(bytes.byteOffset + end, bytes.byteOffset + bytes.length)) };
}

async function main(modelPath, inputsPath) {
  if (!inputsPath) throw new Error("usage: node decide.mjs model.onnx inputs.npy");
  ort.env.wasm.numThreads = 1; // more threads need SharedArrayBuffer, which browsers allow on some pages only
  const session = await ort.InferenceSession.create(await readFile(modelPath));
  const { shape, values } = parseNpy(await readFile(inputsPath));
  const [n, ...sides] = shape;
  const size = sides.reduce((product, side) => product * side, 1);
  for (let first = 0; first < n; first += BATCH) {
    const last = Math.min(first + BATCH, n);
    const input = new ort.Tensor("float32", values.subarray(first * size, last * size), [last - first, ...sides]);
    const found = await session.run({ input }, ["predicted_class", "drip_score", "retain"]);
    for (let row = 0; row < last - first; row += 1) {
      const decision = {
        class: Number(found.predicted_class.data[row]),
        score: found.drip_score.data[row],
        retain: Boolean(found.retain.data[row]),
      };
      process.stdout.write(`${JSON.stringify(decision)}\n`);
    }
  }
}

await main(process.argv[2], process.argv[3]).catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
