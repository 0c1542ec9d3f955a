// The chat on the screen: turns, the streamed answer, editing.

import {announce, button, fill, find, make} from './dom.js';
import {say} from './texts.js';

const NEAR_END = 80; // pixels; closer to the end than this, the view scrolls with the answer

let send; // to the host
let chat = null; // the chat shown; null: a new chat
let live = null; // the element of the answer being streamed; null: none
let answering = false;

/** Sets up the chat; `sender` sends commands to the host. */
export function start(sender) {
  send = sender;
  let follows = true; // the end of the chat is visible
  find('main').addEventListener('scroll', () => { follows = isNearEnd(); });
  new ResizeObserver(() => { // the screen was rotated, or the keyboard or a message appeared
    if (follows && chat !== null) {
      toEnd();
    }
  }).observe(find('main'));
}

/** Returns the id of the chat shown; undefined for a new one. */
export function shownChat() {
  return chat === null ? undefined : chat.id;
}

/** Shows a chat from the host. */
export function showChat(newChat, partial) {
  const before = chat;
  const isSame = before !== null && newChat !== undefined && before.id === newChat.id;
  const editing = isSame && find('turns').querySelector('form');
  chat = newChat === undefined ? null : newChat;
  answering = partial !== undefined;
  if (editing && !answering && before.turns.length === chat.turns.length) {
    return; // nothing has changed, and the user is editing
  }
  live = null;
  const turns = chat === null ? [] : chat.turns;
  fill(find('turns'), ...turns.map((turn, i) => turnElement(turn, i, turns)));
  if (answering) {
    live = make('div', {className: 'text waiting'}, partial);
    find('turns').append(make('div', {className: 'turn'}, hidden(say('model')), live));
  } else if (isSame && turns.length > before.turns.length) {
    announce(say('answered', {text: turns[turns.length - 1].text}));
  }
  if (turns.length > 0) {
    toEnd();
  }
}

/**
 * Appends a piece of the streamed answer that starts at an offset. Text already shown is skipped.
 * Returns false if text before the piece is missing.
 */
export function addText(id, at, text) {
  if (live === null || id !== shownChat()) {
    return true;
  }
  const known = live.textContent.length;
  if (at > known) {
    return false;
  }
  const follow = isNearEnd();
  live.append(text.slice(known - at));
  if (follow) {
    toEnd();
  }
  return true;
}

function turnElement(turn, index, turns) {
  const element = make('div', {className: 'turn ' + turn.role});
  element.append(hidden(turn.role === 'user' ? say('you') : say('model')));
  if (turn.role === 'user') {
    fillQuestion(element, turn, index, turns);
  } else {
    fillAnswer(element, turn, index, turns);
  }
  return element;
}

function fillQuestion(element, turn, index, turns) {
  const isLast = index === turns.length - 1;
  if (turn.picture) {
    const isLater = turns.slice(0, index).some((earlier) => earlier.picture);
    if (isLater) {
      element.append(make('div', {className: 'divider'}, say('pictureStarts')));
    }
    const picture = make('img', {className: 'picture', alt: say('picture')});
    picture.addEventListener('load', () => isLast && toEnd());
    picture.src = 'picture/' + turn.picture;
    element.append(picture);
  }
  element.append(make('div', {className: 'text'}, turn.text));
  if (answering) {
    return;
  }
  if (isLast) {
    element.append(make('div', {className: 'note bad'}, say('noAnswer')));
  }
  const actions = make('div', {className: 'actions'});
  if (isLast) {
    actions.append(button(say('again'), () => ask(turn, index, turn.text), 'again', 'small'));
  }
  actions.append(button(say('edit'), () => edit(element, turn, index), 'edit', 'small'));
  actions.append(copyButton(turn.text));
  element.append(actions);
}

function fillAnswer(element, turn, index, turns) {
  element.append(make('div', {className: 'text'}, turn.text));
  const why = {cancelled: 'stopped', length: 'cut', failed: 'failed'}[turn.stop];
  if (why) {
    const style = turn.stop === 'failed' ? 'note bad' : 'note';
    element.append(make('div', {className: style}, say(why)));
  }
  const speed = speedLine(turn.speed);
  if (speed !== '') {
    element.append(make('div', {className: 'note speed'}, speed));
  }
  if (answering) {
    return;
  }
  const actions = make('div', {className: 'actions'});
  if (index === turns.length - 1) {
    const question = turns[index - 1];
    actions.append(
      button(say('again'), () => ask(question, index - 1, question.text), 'again', 'small'));
  }
  actions.append(copyButton(turn.text));
  element.append(actions);
}

function copyButton(text) {
  const element = button(say('copy'), () => {
    send('copy', {text});
    announce(say('copied'));
    element.lastChild.textContent = say('copied');
    setTimeout(() => { element.lastChild.textContent = say('copy'); }, 1500);
  }, 'copy', 'small');
  return element;
}

/** Lets the user edit a question in place. */
function edit(element, turn, index) {
  const box = make('textarea', {value: turn.text, rows: 3, 'aria-label': say('edit')});
  const done = make('button', {type: 'submit', className: 'strong'}, say('send'));
  const buttons = make('div', {className: 'actions'}, button(say('cancel'), close), done);
  const form = make('form', {}, box, buttons);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (box.value.trim() !== '') {
      form.remove();
      ask(turn, index, box.value);
    }
  });
  function close() {
    form.remove();
    showChat(chat);
  }
  element.querySelector('.actions').remove();
  element.append(form);
  box.focus();
}

/** Asks again, replacing an earlier question. */
function ask(turn, index, text) {
  send('send', {chat: chat.id, from: index, text, picture: turn.picture});
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

function hidden(text) {
  return make('span', {className: 'unseen'}, text);
}

function isNearEnd() {
  const main = find('main');
  return main.scrollHeight - main.scrollTop - main.clientHeight < NEAR_END;
}

function toEnd() {
  const main = find('main');
  main.scrollTop = main.scrollHeight;
}
