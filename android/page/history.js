// The list of chats: search, open, rename, delete.

import {button, fill, find, make, makeIcon} from './dom.js';
import {say} from './texts.js';

const SEARCH_MS = 150; // after the last key

let send; // to the host
let panels; // `closeAll` and `redraw`
let wanted = ''; // the text searched for; empty: none
let found = null; // ids of the chats that contain it; null: the host has not answered yet
let opened = null; // the chat whose actions are shown; null: none
let doing = ''; // to that chat: `rename`, `delete`
let searching = 0; // a timer

/** Sets up the list. */
export function start(sender, access) {
  send = sender;
  panels = access;
  find('search').addEventListener('input', () => {
    wanted = find('search').value.trim();
    clearTimeout(searching);
    if (wanted === '') {
      found = null;
      panels.redraw('history');
    } else {
      searching = setTimeout(() => send('search', {text: wanted}), SEARCH_MS);
    }
  });
}

/** Labels the search box. */
export function label() {
  find('search').placeholder = say('search');
  find('search').setAttribute('aria-label', say('search'));
  find('side').setAttribute('aria-label', say('history'));
}

/** Shows the chats that the host found. */
export function showFound(event) {
  if (event.text === wanted) {
    found = event.chats;
    panels.redraw('history');
  }
}

/** See panels.js. */
export function content(state) {
  const isWanted = (chat) => wanted === '' || found === null || found.includes(chat.id);
  const chats = state.chats.filter(isWanted);
  find('search').hidden = state.chats.length === 0;
  return {
    key: [chats, state.shown, opened, doing, wanted],
    make: () => {
      const list = make('ul', {className: 'chats'}, ...chats.map((chat) => row(chat, state)));
      const empty = make('p', {className: 'faint'}, say(wanted === '' ? 'noChats' : 'notFound'));
      return [chats.length > 0 ? list : empty];
    },
  };
}

function row(chat, state) {
  const date = new Date(chat.changed).toLocaleString(document.documentElement.lang,
    {dateStyle: 'medium', timeStyle: 'short'});
  const label = chat.title || say('untitled');
  const thumb = make('span', {className: 'thumb'});
  if (chat.picture) {
    const picture = make('img', {alt: '', loading: 'lazy', decoding: 'async'});
    picture.src = 'picture/' + chat.picture;
    thumb.append(picture);
  } else {
    thumb.append(makeIcon('chat'));
  }
  const opener = make('button', {type: 'button', className: 'open', id: 'chat-' + chat.id}, thumb,
    make('span', {className: 'title'}, label, make('span', {className: 'note'}, date)));
  if (chat.id === state.shown) {
    opener.setAttribute('aria-current', 'true');
  }
  opener.addEventListener('click', () => {
    set(null, '');
    panels.closeAll();
    send('open', {chat: chat.id});
  });
  const isOpen = opened === chat.id;
  const more = button('⋯', () => set(isOpen ? null : chat.id, ''), null, 'icon');
  more.id = 'more-' + chat.id;
  more.setAttribute('aria-label', say('actions') + ': ' + label);
  more.setAttribute('aria-expanded', String(isOpen));
  return make('li', {}, make('div', {className: 'line'}, opener, more),
    isOpen ? actionsOf(chat, label) : null);
}

function actionsOf(chat, label) {
  if (doing === 'rename') {
    return renameForm(chat, label);
  }
  const isSure = doing === 'delete';
  const remove = button(say(isSure ? 'deleteSure' : 'delete'), () => {
    if (isSure) {
      send('delete', {chat: chat.id});
      set(null, '');
    } else {
      set(chat.id, 'delete');
    }
  }, 'delete', isSure ? 'danger sure' : 'danger');
  remove.id = 'delete-' + chat.id;
  return make('div', {className: 'actions'},
    button(say('rename'), () => {
      set(chat.id, 'rename');
      find('title-' + chat.id).select();
    }, 'edit'), remove);
}

function renameForm(chat, label) {
  const box = make('input', {type: 'text', id: 'title-' + chat.id, value: label, maxLength: 200});
  box.setAttribute('aria-label', say('rename'));
  const form = make('form', {className: 'actions'}, box,
    button(say('cancel'), () => set(chat.id, '')),
    make('button', {type: 'submit', className: 'strong'}, say('save')));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    send('rename', {chat: chat.id, title: box.value});
    set(null, '');
    find('more-' + chat.id).focus();
  });
  return form;
}

function set(chat, action) {
  opened = chat;
  doing = action;
  panels.redraw('history');
}
