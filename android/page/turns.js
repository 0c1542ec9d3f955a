// One turn on the screen: a question or an answer, and what the user can do with it.

import {announce, button, make} from './dom.js';
import {MarkdownView} from './markdown.js';
import {say} from './texts.js';

const COPIED_MS = 1500; // how long a button says that it has copied

/** Creates a question's element. `notes`: `isLater`, `isUnanswered`. */
export function questionElement(turn, notes, onPicture) {
  const element = shell('user', say('you'));
  if (turn.picture) {
    if (notes.isLater) {
      element.append(make('div', {className: 'divider'}, say('pictureStarts')));
    }
    const picture = make('img', {alt: '', decoding: 'async'});
    picture.src = 'picture/' + turn.picture;
    const opener = make('button', {type: 'button', className: 'picture'}, picture);
    opener.setAttribute('aria-label', say('enlarge'));
    opener.addEventListener('click', () => onPicture(turn.picture));
    element.append(opener);
  }
  element.append(make('div', {className: 'text'}, turn.text));
  if (notes.isUnanswered) {
    element.append(make('div', {className: 'note bad'}, say('noAnswer')));
  }
  return element;
}

/** An answer on the screen, which grows while it is streamed. */
export class AnswerView {
  constructor(sender) {
    this.text = '';
    this.body = make('div', {className: 'text'});
    this.element = shell('assistant', say('model'));
    this.element.append(this.body);
    this.markdown = new MarkdownView(this.body, (language, code) => codeBar(language, code, sender));
  }

  /** Draws a text that begins with the one drawn before. */
  update(text) {
    this.text = text;
    this.markdown.update(text);
  }

  /** Adds how the answer ended. */
  complete(turn, showsSpeed) {
    const why = {cancelled: 'stopped', length: 'cut', failed: 'failed'}[turn.stop];
    if (why) {
      const style = turn.stop === 'failed' ? 'note bad' : 'note';
      this.element.append(make('div', {className: style}, say(why)));
    }
    const speed = showsSpeed ? speedLine(turn.speed) : '';
    if (speed !== '') {
      this.element.append(make('div', {className: 'note speed'}, speed));
    }
  }
}

/** Creates a button that copies what `read` returns, and says so. */
export function copyButton(read, send) {
  const element = button(say('copy'), () => {
    send('copy', {text: read()});
    announce(say('copied'));
    element.lastChild.textContent = say('copied');
    setTimeout(() => { element.lastChild.textContent = say('copy'); }, COPIED_MS);
  }, 'copy', 'small');
  return element;
}

/** Creates the form that edits a question in its place. */
export function editForm(text, onDone, onCancel) {
  const box = make('textarea', {value: text, rows: 3, 'aria-label': say('edit')});
  const done = make('button', {type: 'submit', className: 'strong'}, say('send'));
  const form = make('form', {}, box,
    make('div', {className: 'actions'}, button(say('cancel'), onCancel), done));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (box.value.trim() !== '') {
      onDone(box.value);
    }
  });
  return form;
}

/** A turn without its contents. Its button shows what can be done with it. */
function shell(role, name) {
  const more = button('⋯', () => {}, null, 'more'); // chat.js handles taps on a whole turn
  more.tabIndex = -1; // the arrow keys reach it
  more.setAttribute('aria-expanded', 'false');
  more.setAttribute('aria-label', say('actions'));
  return make('div', {className: 'turn ' + role}, make('span', {className: 'unseen'}, name), more);
}

function codeBar(language, code, send) {
  return make('div', {className: 'bar'}, make('span', {}, language),
    copyButton(() => code.textContent, send));
}

function speedLine(speed) {
  const parts = [];
  const statistics = speed && speed.statistics;
  if (speed && speed.encode_ms > 0) {
    const digits = speed.encode_ms < 1000 ? 2 : 1;
    parts.push(say('speedPicture', {seconds: (speed.encode_ms / 1000).toFixed(digits)}));
  }
  if (statistics) {
    const reused = statistics.reused_tokens;
    parts.push(say('speedPrompt', {
      tokens: statistics.prompt_tokens,
      rate: statistics.prefill_tok_s.toFixed(0),
    }) + (reused > 0 ? ' (' + say('speedReused', {tokens: reused}) + ')' : ''));
    parts.push(say('speedAnswer', {
      tokens: statistics.generated_tokens,
      rate: statistics.decode_tok_s.toFixed(1),
    }));
  }
  return parts.join(' · ');
}
