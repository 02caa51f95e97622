// Runs where the browser handles sound: passes the microphone's samples on, some thousands at a time.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.chunk = new Float32Array(4096);
    this.length = 0;
  }

  process([input]) {
    if (!input.length) return true;
    for (let i = 0; i < input[0].length; i++) {
      let sum = 0;
      for (const channel of input) sum += channel[i];
      this.chunk[this.length++] = sum / input.length;
      if (this.length === this.chunk.length) {
        this.port.postMessage(this.chunk.slice());
        this.length = 0;
      }
    }
    return true;
  }
}
registerProcessor("capture", Capture);
