// A worker: the network, and the spectrogram that is shown. The page stays quick meanwhile.
import { logMel } from "/page/log-mel.js";

let session = null;
let info = null;

async function load({ threads }) {
  const ort = await import("/page/vendor/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = "/page/vendor/";
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  info = await (await fetch("/page/vendor/model.json")).json();
  session = await ort.InferenceSession.create("/page/vendor/model.onnx", { executionProviders: ["wasm"], logSeverityLevel: 3 });
  self.Tensor = ort.Tensor;
  return info;
}

async function scores({ samples }) {
  const before = performance.now();
  const output = await session.run({ [info.input]: new self.Tensor("float32", samples, [1, samples.length]) });
  return { scores: Float32Array.from(output[info.output].data), milliseconds: performance.now() - before };
}

const WORK = { load, scores, logMel: ({ samples, columns }) => logMel(samples, columns) };

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ id: data.id, result: await WORK[data.what](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};
