"use strict";

// Cells of the table of the comparison; above it the middle of two texts is not compared.
const MOST_CELLS = 4000000;

/** Words with the space before them. */
function words(text) {
  return text.match(/\s*\S+|\s+$/g) || [];
}

/**
 * The longest common subsequence of two lists of texts.
 * Returns pairs of "same", "added" or "removed", and a text; equal neighbours are joined.
 */
function difference(before, after) {
  let start = 0;
  while (start < before.length && start < after.length && before[start] === after[start]) start++;
  let end = 0;
  const most = Math.min(before.length, after.length) - start;
  while (end < most && before[before.length - 1 - end] === after[after.length - 1 - end]) end++;
  const one = before.slice(start, before.length - end);
  const other = after.slice(start, after.length - end);
  const parts = [["same", before.slice(0, start).join("")]];
  if (one.length * other.length > MOST_CELLS) {
    parts.push(["removed", one.join("")], ["added", other.join("")]);
  } else {
    parts.push(...middle(one, other));
  }
  parts.push(["same", before.slice(before.length - end).join("")]);
  return joined(parts);
}

function middle(one, other) {
  const width = other.length + 1;
  const common = new Uint16Array((one.length + 1) * width);
  for (let i = one.length - 1; i >= 0; i--) {
    for (let j = other.length - 1; j >= 0; j--) {
      common[i * width + j] =
        one[i] === other[j]
          ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const parts = [];
  let i = 0;
  let j = 0;
  while (i < one.length || j < other.length) {
    if (i < one.length && j < other.length && one[i] === other[j]) {
      parts.push(["same", one[i++]]);
      j++;
    } else if (j >= other.length || (i < one.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      parts.push(["removed", one[i++]]);
    } else {
      parts.push(["added", other[j++]]);
    }
  }
  return parts;
}

function joined(parts) {
  const found = [];
  for (const [kind, text] of parts) {
    if (!text) continue;
    const last = found[found.length - 1];
    if (last && last[0] === kind) last[1] += text;
    else found.push([kind, text]);
  }
  return found;
}
