// Runs a file of `dymn export` with onnxruntime-web in Node, as a browser would, and prints the probabilities as JSON:
//
//     node web/check.mjs FILE.onnx CLIPS LENGTH
//
// CLIPS holds float32 samples, one clip of LENGTH after the other.

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [model, clips, length] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
const bytes = readFileSync(clips);
const samples = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const answers = [];
for (let start = 0; start < samples.length; start += Number(length)) {
  const clip = new ort.Tensor("float32", samples.slice(start, start + Number(length)), [1, Number(length)]);
  const { probabilities } = await session.run({ waveform: clip }, ["probabilities"]);
  answers.push(Array.from(probabilities.data));
}
console.log(JSON.stringify(answers));
