// Answers as Markdown, drawn with DOM nodes: headings, paragraphs, lists, quotes, tables, code,
// emphasis. HTML is text, pictures are not loaded, and an address is shown, not linked.

import {make, patch} from './dom.js';

const DEPTH = 6; // of nested lists, quotes and emphasis; what is deeper stays text
const LABEL = 500; // characters of a link's label, and of its address
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(\S.*)$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[0-9A-Za-z]/;
const EMPHASIS = [['**', 'strong'], ['__', 'strong'], ['~~', 'del'], ['*', 'em'], ['_', 'em']];

/** An answer that may still grow: only its last blocks are drawn again. */
export class MarkdownView {
  /** Draws into an element; `codeBar` returns what stands above a block of code. */
  constructor(element, codeBar) {
    this.element = element;
    this.codeBar = codeBar;
    this.settled = 0; // offset of a block before which nothing changes any more
    this.blocks = 0; // how many blocks come before it
  }

  /** Draws a text that begins with the one drawn before. */
  update(text) {
    const lines = text.slice(this.settled).split('\n');
    const found = parseBlocks(lines, 0);
    found.forEach((block, i) => {
      const old = this.element.childNodes[this.blocks + i];
      const fresh = this.draw(block);
      if (old) {
        patch(old, fresh);
      } else {
        this.element.append(fresh);
      }
    });
    while (this.element.childNodes.length > this.blocks + found.length) {
      this.element.lastChild.remove();
    }
    // A line that is not whole yet may still continue the block before it.
    const isPart = found.length > 0 && found[found.length - 1].line === lines.length - 1;
    const last = found.length - (isPart ? 2 : 1);
    if (last > 0) {
      this.blocks += last;
      this.settled += lines.slice(0, found[last].line).reduce((sum, l) => sum + l.length + 1, 0);
    }
  }

  draw(block) {
    const children = (blocks) => blocks.map((child) => this.draw(child));
    switch (block.kind) {
      case 'code': {
        const code = make('pre', {tabIndex: 0}, make('code', {}, block.text));
        return make('div', {className: 'code'}, this.codeBar(block.language, code), code);
      }
      case 'heading': return inline(make('h' + Math.min(6, block.level + 2)), block.text, 0);
      case 'rule': return make('hr');
      case 'quote': return make('blockquote', {}, ...children(block.blocks));
      case 'list': return this.drawList(block);
      case 'table': return drawTable(block);
      default: return inline(make('p'), block.text, 0);
    }
  }

  drawList(block) {
    const list = make(block.start === null ? 'ul' : 'ol');
    if (block.start !== null && block.start !== 1) {
      list.start = block.start;
    }
    for (const blocks of block.items) {
      list.append(make('li', {}, ...blocks.map((child) => this.draw(child))));
    }
    return list;
  }
}

function drawTable(block) {
  const row = (cells, name) =>
    make('tr', {}, ...cells.map((cell) => inline(make(name), cell, 0)));
  const body = block.rows.map((cells) => row(cells, 'td'));
  return make('div', {className: 'table', tabIndex: 0}, make('table', {},
    make('thead', {}, row(block.head, 'th')), make('tbody', {}, ...body)));
}

/** Returns the blocks of some lines, each with the index of its first line. */
function parseBlocks(lines, depth) {
  const blocks = [];
  for (let i = 0; i < lines.length;) {
    if (isBlank(lines[i])) {
      i++;
      continue;
    }
    const taken = takeBlock(lines, i, depth);
    taken.block.line = i;
    blocks.push(taken.block);
    i = taken.next;
  }
  return blocks;
}

function takeBlock(lines, i, depth) {
  const fence = FENCE.exec(lines[i]);
  if (fence) {
    return takeCode(lines, i, fence);
  }
  const heading = HEADING.exec(lines[i]);
  if (heading) {
    const text = heading[2].trim();
    return {block: {kind: 'heading', level: heading[1].length, text}, next: i + 1};
  }
  if (isRule(lines[i])) {
    return {block: {kind: 'rule'}, next: i + 1};
  }
  if (depth < DEPTH && QUOTE.test(lines[i])) {
    let end = i;
    while (end < lines.length && QUOTE.test(lines[end])) {
      end++;
    }
    const inner = lines.slice(i, end).map((line) => line.replace(QUOTE, ''));
    return {block: {kind: 'quote', blocks: parseBlocks(inner, depth + 1)}, next: end};
  }
  if (depth < DEPTH && ITEM.test(lines[i])) {
    return takeList(lines, i, depth);
  }
  return takeTable(lines, i) || takeParagraph(lines, i, depth);
}

/** Takes a block of code; without its end, all that follows. */
function takeCode(lines, i, fence) {
  const mark = fence[1];
  let end = i + 1;
  while (end < lines.length && !closes(lines[end], mark)) {
    end++;
  }
  const text = lines.slice(i + 1, end).join('\n');
  return {block: {kind: 'code', language: fence[2].trim(), text}, next: end + 1};
}

function closes(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

/** Takes a list: items of one kind, each with the indented lines that follow it. */
function takeList(lines, i, depth) {
  const first = ITEM.exec(lines[i]);
  const isOrdered = first[2].length > 1;
  const items = [];
  let next = i;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    if (!item || item[1].length > first[1].length + 1 || isRule(lines[next])
      || (item[2].length > 1) !== isOrdered) {
      break;
    }
    const inner = [lines[next].slice(item[0].length)];
    const indent = item[0].length;
    next = takeItemLines(lines, next + 1, indent, inner);
    items.push(parseBlocks(inner, depth + 1));
    let following = next;
    while (following < lines.length && isBlank(lines[following])) {
      following++;
    }
    if (following < lines.length && ITEM.test(lines[following])) {
      next = following;
    }
  }
  return {block: {kind: 'list', start: isOrdered ? parseInt(first[2], 10) : null, items}, next};
}

/** Adds the lines of an item to `inner`; returns the index of the line after it. */
function takeItemLines(lines, start, indent, inner) {
  const least = Math.min(indent, 2); // models indent by two spaces below `1.`, too
  let next = start;
  for (; next < lines.length; next++) {
    const spaces = lines[next].length - lines[next].trimLeft().length;
    if (isBlank(lines[next])) {
      const after = next + 1 < lines.length ? lines[next + 1] : '';
      if (isBlank(after) || after.length - after.trimLeft().length < least) {
        break;
      }
      inner.push('');
    } else if (spaces >= least) {
      inner.push(lines[next].slice(Math.min(spaces, indent)));
    } else if (ITEM.test(lines[next]) || startsBlock(lines[next])) {
      break;
    } else {
      inner.push(lines[next]); // a paragraph's line that is not indented
    }
  }
  return next;
}

function takeTable(lines, i) {
  if (!lines[i].includes('|') || i + 1 === lines.length) {
    return null;
  }
  const head = cellsOf(lines[i]);
  const rule = cellsOf(lines[i + 1]);
  if (!lines[i + 1].includes('-') || rule.length !== head.length
    || !rule.every((cell) => /^:?-+:?$/.test(cell))) {
    return null;
  }
  const rows = [];
  let next = i + 2;
  for (; next < lines.length && lines[next].includes('|'); next++) {
    const cells = cellsOf(lines[next]);
    rows.push(head.map((_, column) => cells[column] || ''));
  }
  return {block: {kind: 'table', head, rows}, next};
}

function cellsOf(line) {
  return line.trim().replace(/^\|/, '').replace(/\|$/, '').split('|').map((cell) => cell.trim());
}

function takeParagraph(lines, i, depth) {
  let next = i + 1;
  while (next < lines.length && !isBlank(lines[next])
    && !(depth < DEPTH && startsBlock(lines[next]))) {
    next++;
  }
  const text = lines.slice(i, next).map((line) => line.trimLeft()).join('\n');
  return {block: {kind: 'paragraph', text}, next};
}

/** Whether a line ends the paragraph before it. */
function startsBlock(line) {
  const item = ITEM.exec(line);
  const isItem = item && (item[2].length === 1 || parseInt(item[2], 10) === 1);
  return isItem || FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || isRule(line);
}

function isRule(line) {
  const marks = line.replace(/ /g, '');
  return marks.length >= 3 && '-*_'.includes(marks[0]) && marks === marks[0].repeat(marks.length);
}

function isBlank(line) {
  return line.trim() === '';
}

/** Draws a text with emphasis, code and addresses into an element. */
function inline(parent, text, depth) {
  const dead = new Set(); // marks that nothing closes in the rest of the text
  let drawn = 0;
  for (let i = 0; i < text.length;) {
    const span = depth < DEPTH ? spanAt(text, i, dead, depth) : null;
    if (span === null) {
      i++;
      continue;
    }
    if (span.nodes) {
      parent.append(text.slice(drawn, i), ...span.nodes);
      drawn = span.next;
    }
    i = span.next;
  }
  if (drawn < text.length) {
    parent.append(text.slice(drawn));
  }
  parent.normalize();
  return parent;
}

/** Returns what begins at an index: its nodes, or none if it is text, and the index after it. */
function spanAt(text, i, dead, depth) {
  switch (text[i]) {
    case '\\':
      return i + 1 < text.length && PUNCTUATION.test(text[i + 1])
        ? {nodes: [text[i + 1]], next: i + 2} : null;
    case '`': return codeAt(text, i, dead);
    case '!': return text[i + 1] === '[' ? linkAt(text, i + 1, depth) : null;
    case '[': return linkAt(text, i, depth);
    case '*': case '_': case '~': return emphasisAt(text, i, dead, depth);
    default: return null;
  }
}

function codeAt(text, i, dead) {
  let start = i;
  while (text[start] === '`') {
    start++;
  }
  const mark = text.slice(i, start);
  let end = dead.has(mark) ? -1 : text.indexOf(mark, start);
  while (end >= 0 && text[end + mark.length] === '`') { // a longer run
    while (text[end] === '`') {
      end++;
    }
    end = text.indexOf(mark, end);
  }
  if (end < 0) {
    dead.add(mark);
    return {next: start};
  }
  return {nodes: [make('code', {}, text.slice(start, end))], next: end + mark.length};
}

/** A link or a picture: its label, and its address unless the label says it. */
function linkAt(text, i, depth) {
  const middle = text.slice(i, i + LABEL).indexOf('](');
  const start = i + middle + 2;
  const length = middle < 0 ? -1 : text.slice(start, start + LABEL).indexOf(')');
  if (length < 1) {
    return null;
  }
  const label = text.slice(i + 1, start - 2);
  const address = text.slice(start, start + length).split(' ')[0];
  if (!/^(https?:\/\/|mailto:)/i.test(address) || label.includes('[')) {
    return null;
  }
  const shown = label === address ? '' : make('span', {className: 'address'}, ` (${address})`);
  return {nodes: [inline(make('span'), label, depth + 1), shown], next: start + length + 1};
}

function emphasisAt(text, i, dead, depth) {
  const found = EMPHASIS.find(([mark]) => text.startsWith(mark, i));
  if (!found) {
    return null;
  }
  const [mark, name] = found;
  const start = i + mark.length;
  const isInWord = (mark.length === 1 || mark === '__') && i > 0 && WORD.test(text[i - 1]);
  if (dead.has(mark) || isInWord || start >= text.length || text[start].trim() === '') {
    return {next: start};
  }
  const end = closing(text, mark, start + 1);
  if (end < 0) {
    dead.add(mark);
    return {next: start};
  }
  const inner = inline(make(name), text.slice(start, end), depth + 1);
  return {nodes: [inner], next: end + mark.length};
}

/** Returns the index of the mark that closes an emphasis, or -1. */
function closing(text, mark, from) {
  const char = mark[0];
  for (let at = text.indexOf(mark, from); at >= 0;) {
    let end = at; // of the run of these characters
    while (text[end] === char) {
      end++;
    }
    const fits = mark.length === 1 ? (end - at) % 2 === 1 : true;
    const isAfterText = text[at - 1].trim() !== '' && text[at - 1] !== '\\';
    const isInWord = (mark.length === 1 || mark === '__') && end < text.length && WORD.test(text[end]);
    if (fits && isAfterText && !isInWord) {
      return end - mark.length; // of `***` the outer marks
    }
    at = text.indexOf(mark, end);
  }
  return -1;
}
