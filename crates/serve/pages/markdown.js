// A small part of Markdown, as nodes: headings, paragraphs, lists, quotes, code, rules, emphasis. There is no way to
// write HTML in it, and an address is shown and not followed.

import { el, visible } from "./text.js";

const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const FENCE = /^\s*```/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^\s*>\s?/;
const ITEM = /^(\s*)([-*+]|\d+[.)])\s+/;
const BLANK = /^\s*$/;

/** The blocks of a text. Its headings start at the second level: the page has the first. */
export function markdown(text) {
  return blocks(text.replaceAll("\r\n", "\n").split("\n"));
}

function blocks(lines) {
  const nodes = [];
  for (let at = 0; at < lines.length;) {
    const [node, used] = block(lines.slice(at));
    if (node) nodes.push(node);
    at += used;
  }
  return nodes;
}

/** The block that the first of `lines` begins, if it does, and how many lines it takes. */
function block(lines) {
  const [first] = lines;
  if (BLANK.test(first)) return [null, 1];
  if (FENCE.test(first)) return fenced(lines);
  if (RULE.test(first)) return [el("hr"), 1];
  if (HEADING.test(first)) return [heading(first), 1];
  if (QUOTE.test(first)) return quote(lines);
  if (ITEM.test(first)) return items(lines);
  return paragraph(lines);
}

function heading(line) {
  const [, marks, text] = line.match(HEADING);
  return el(`h${Math.min(6, marks.length + 1)}`, {}, ...inline(text));
}

function fenced(lines) {
  const inside = taken(lines.slice(1), (line) => !FENCE.test(line));
  const code = el("code", {}, ...visible(inside.join("\n")));
  return [el("pre", { tabindex: "0" }, code), inside.length + 2];
}

function quote(lines) {
  const inside = taken(lines, (line) => QUOTE.test(line));
  const text = inside.map((line) => line.replace(QUOTE, ""));
  return [el("blockquote", {}, ...blocks(text)), inside.length];
}

function paragraph(lines) {
  const starts = [BLANK, FENCE, RULE, HEADING, QUOTE, ITEM];
  const rest = taken(lines.slice(1), (line) => !starts.some((start) => start.test(line)));
  const text = [lines[0], ...rest].map((line) => line.trim()).join(" ");
  return [el("p", {}, ...inline(text)), rest.length + 1];
}

/** A list: its items start as far left as the first and with the same kind of mark; what is indented further, or
 *  follows without a blank line, belongs to the item before it. */
function items(lines) {
  const [, indent, mark] = lines[0].match(ITEM);
  const ordered = /\d/.test(mark);
  const starts = (line) => {
    const found = line.match(ITEM);
    return found !== null && found[1].length <= indent.length && /\d/.test(found[2]) === ordered;
  };
  const inside = listLines(lines, indent.length, starts);
  const list = el(ordered ? "ol" : "ul", ordered ? { start: parseInt(mark, 10) } : {});
  for (let at = 0; at < inside.length;) {
    const rest = taken(inside.slice(at + 1), (line) => !starts(line));
    list.append(item(inside[at], rest));
    at += rest.length + 1;
  }
  return [list, inside.length];
}

/** The lines of a list that begins at the first: up to a blank line after which nothing belongs to it, or a block of
 *  another kind that is not indented. */
function listLines(lines, indent, starts) {
  const deeper = (line) => line.search(/\S/) > indent;
  const ends = (line) => [HEADING, FENCE, RULE, QUOTE, ITEM].some((start) => start.test(line));
  const belongs = (line, at) => {
    if (BLANK.test(line)) return lines[at + 1] !== undefined && (starts(lines[at + 1]) || deeper(lines[at + 1]));
    return starts(line) || deeper(line) || (!BLANK.test(lines[at - 1]) && !ends(line));
  };
  return taken(lines, belongs);
}

function item(first, rest) {
  const text = first.replace(ITEM, "");
  const width = first.length - text.length;
  const inside = [text, ...rest.map((line) => line.slice(Math.min(width, Math.max(0, line.search(/\S/)))))];
  const nodes = blocks(inside);
  // An item of one paragraph is the paragraph's words: a list with air in every line reads badly.
  const flat = nodes.flatMap((node, at) => (at === 0 && node.localName === "p" ? [...node.childNodes] : [node]));
  return el("li", {}, ...flat);
}

function taken(lines, holds) {
  const end = lines.findIndex((line, at) => !holds(line, at));
  return end < 0 ? lines : lines.slice(0, end);
}

/** Code, links, strong and emphasised words; an underscore inside a word is an underscore. */
const INLINE =
  /`(?<code>[^`]+)`|!?\[(?<label>[^\]]*)\]\((?<address>(?:[^()]|\([^()]*\))*)\)|\*\*(?<strong>(?!\s).+?)\*\*|\*(?<em>(?![\s*]).+?)\*|(?<![\p{L}\p{N}_])__(?<strong2>(?!\s).+?)__(?![\p{L}\p{N}_])|(?<![\p{L}\p{N}_])_(?<em2>(?![\s_]).+?)_(?![\p{L}\p{N}_])/gu;

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    nodes.push(...visible(text.slice(end, found.index)), ...marked(found.groups));
    end = found.index + found[0].length;
  }
  return [...nodes, ...visible(text.slice(end))];
}

function marked({ code, label, address, strong, em, strong2, em2 }) {
  if (code !== undefined) return [el("code", {}, ...visible(code))];
  if (address !== undefined) return [...inline(label), " (", el("code", {}, ...visible(address)), ")"];
  if (strong ?? strong2) return [el("strong", {}, ...inline(strong ?? strong2))];
  return [el("em", {}, ...inline(em ?? em2))];
}
