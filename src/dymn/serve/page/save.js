// Results as files, with the columns and fields of `dymn tag --timeline`.

const TYPES = { csv: "text/csv", json: "application/json" };
const rounded = (tags) => tags.map(({ label, score }) => ({ label, score: Number(score.toFixed(6)) }));
const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

export function asCsv({ file, windows }) {
  const rows = windows.flatMap(({ start, end, tags }) =>
    tags.map(({ label, score }) => [quoted(file), start.toFixed(3), end.toFixed(3), quoted(label), score.toFixed(6)]),
  );
  return [["file", "start", "end", "label", "score"], ...rows].map((row) => `${row.join(",")}\r\n`).join("");
}

export function asJson({ tags, windows, ...rest }) {
  return JSON.stringify({ ...rest, tags: rounded(tags), windows: windows.map((one) => ({ ...one, tags: rounded(one.tags) })) }, null, 1);
}

export function save(name, ending, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: TYPES[ending] }));
  link.download = `${name}.tags.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
