// A stand-in of HarmonyOS's libace_napi.z.so: the functions of native/napi.h, with just enough of
// JavaScript behind them to load the module and talk to an engine through it.
//
// It also exports `stand_in_main` for library_host.cc, so that whatever tests the engine's library tests the module:
// requests go to the module's `send`, and what its listener gets comes out as events. A line that
// begins with `!` is a call of the module instead, `!NAME ARGUMENT…` with arguments `n:NUMBER`,
// `s:TEXT` (to the end of the line) and `f:`; its result comes out as a line, too.
//
// The process ends with a message where the module breaks a rule: a call on a wrong thread, a value
// of another type than the call takes, a function that is used after its release.
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "android/harmony/native/napi.h"

namespace {

constexpr char kModule[] = "libminicpmv.so";
constexpr int kNull = 1, kUndefined = 0, kObject = 6;  // of napi_valuetype, beside the module's

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::_Exit(70);
}

void Check(bool is_right, const char* what) {
  if (!is_right) Fail(what);
}

napi_module* the_module = nullptr;

}  // namespace

struct napi_value__ {
  int type = kUndefined;
  int32_t number = 0;
  std::string text;
  napi_callback native = nullptr;                    // a function of the module's
  std::function<void(napi_env, napi_value)> script;  // a function of JavaScript's
  std::map<std::string, napi_value> properties;
};

struct napi_callback_info__ {
  std::vector<napi_value> arguments;
};

struct napi_threadsafe_function__ {
  napi_env env;
  napi_value function;
  void* context;
  napi_threadsafe_function_call_js call_js;
  size_t threads;
  std::deque<void*> queue;  // guarded by the environment's mutex
};

// A thread with JavaScript, and its loop.
struct napi_env__ {
  explicit napi_env__(int out_fd) : out(out_fd) {}

  napi_value New(int type) {
    values.push_back(std::make_unique<napi_value__>());
    values.back()->type = type;
    return values.back().get();
  }
  void CheckThread() const {
    Check(thread == std::this_thread::get_id(), "a call on a wrong thread");
  }
  void Post(std::function<void()> task) {
    const std::lock_guard<std::mutex> lock(mutex);
    tasks.push_back(std::move(task));
    changed.notify_all();
  }
  void WriteLine(std::string line) {
    line += "\n";
    for (size_t at = 0; at < line.size();) {
      ssize_t size = send(out, line.data() + at, line.size() - at, MSG_NOSIGNAL);
      if (size < 0 && errno == ENOTSOCK) size = write(out, line.data() + at, line.size() - at);
      if (size > 0) {
        at += static_cast<size_t>(size);
      } else if (errno == EAGAIN) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      } else {
        is_cut_off = true;
        return;
      }
    }
  }

  const int out;
  const std::thread::id thread = std::this_thread::get_id();
  std::vector<std::unique_ptr<napi_value__>> values;  // of the current turn
  std::optional<std::string> thrown_code, thrown_message;
  std::vector<std::pair<void (*)(void*), void*>> hooks;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;                        // guarded by mutex
  std::vector<std::unique_ptr<napi_threadsafe_function__>> ways;  // guarded by mutex
  bool has_ended = false;   // the engine
  bool is_cut_off = false;  // nobody reads the events
};

namespace {

// Keeps a value beyond the turn in which it was made.
std::unique_ptr<napi_value__> Keep(napi_env env, napi_value value) {
  for (auto& held : env->values) {
    if (held.get() == value) return std::exchange(held, std::make_unique<napi_value__>());
  }
  Fail("no value of this turn");
}

napi_value Call(napi_env env, napi_value function, std::vector<napi_value> arguments) {
  napi_callback_info__ info{std::move(arguments)};
  return function->native(env, &info);
}

// Calls a function of the module as `!` lines describe it; returns a line with the result.
std::string CallByLine(napi_env env, napi_value exports, const std::string& line) {
  size_t at = line.find(' ');
  const std::string name = line.substr(1, at == std::string::npos ? at : at - 1);
  std::vector<napi_value> arguments;
  while (at != std::string::npos) {
    const size_t end = line[at + 1] == 's' ? std::string::npos : line.find(' ', at + 1);
    const std::string text = line.substr(at + 3, end == std::string::npos ? end : end - at - 3);
    napi_value value = env->New(line[at + 1] == 'n'   ? napi_number
                                : line[at + 1] == 's' ? napi_string
                                                      : napi_function);
    if (value->type == napi_number) value->number = std::atoi(text.c_str());
    value->text = text;
    // What it gets comes with a mark.
    value->script = [](napi_env env, napi_value line) {
      env->WriteLine(line->type == kNull ? "!end" : "!" + line->text);
    };
    arguments.push_back(value);
    at = end;
  }
  napi_value result = Call(env, exports->properties.at(name), std::move(arguments));
  if (env->thrown_code) {
    const std::string said = "!thrown " + *env->thrown_code + " " + *env->thrown_message;
    env->thrown_code.reset();
    return said;
  }
  return "!returned " + (result == nullptr ? "nothing" : std::to_string(result->number));
}

// Runs what waits, in turns, until the engine has ended or nobody reads any more.
void RunLoop(napi_env env) {
  while (!env->has_ended && !env->is_cut_off) {
    std::function<void()> task;
    {
      std::unique_lock<std::mutex> lock(env->mutex);
      env->changed.wait(lock, [env] { return !env->tasks.empty(); });
      task = std::move(env->tasks.front());
      env->tasks.pop_front();
    }
    task();
    env->values.clear();
  }
}

void EndEnvironment(napi_env env) {
  while (!env->hooks.empty()) {
    const auto [hook, data] = env->hooks.back();
    env->hooks.pop_back();
    hook(data);
  }
  for (auto& way : env->ways) {
    Check(way->threads == 0, "a thread still has a way to JavaScript when it ends");
    for (void* data : way->queue) way->call_js(nullptr, nullptr, way->context, data);
    delete way->function;
  }
}

// Reads requests and posts them to the loop.
void ReadRequests(napi_env env, int in_fd, napi_value exports, int32_t handle) {
  const auto call = [=](const char* name, const std::string* line) {
    napi_value number = env->New(napi_number);
    number->number = handle;
    std::vector<napi_value> arguments{number};
    if (line != nullptr) {
      arguments.push_back(env->New(napi_string));
      arguments.back()->text = *line;
    }
    Call(env, exports->properties.at(name), arguments);
    if (env->thrown_code) {
      env->WriteLine("!thrown " + *env->thrown_code + " " + *env->thrown_message);
      env->thrown_code.reset();
    }
  };
  std::string partial;
  std::vector<char> block(1 << 16);
  for (;;) {
    const ssize_t size = read(in_fd, block.data(), block.size());
    if (size < 0 && errno == EAGAIN) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    if (size <= 0) break;
    partial.append(block.data(), static_cast<size_t>(size));
    size_t at = 0;
    for (size_t end; (end = partial.find('\n', at)) != std::string::npos; at = end + 1) {
      env->Post([=, line = partial.substr(at, end - at)] {
        if (line[0] == '!') {
          env->WriteLine(CallByLine(env, exports, line));
        } else {
          call("send", &line);
        }
      });
    }
    partial.erase(0, at);
  }
  env->Post([=] { call("close", nullptr); });
}

void RunScript(int in_fd, int out_fd) {
  napi_env__ environment(out_fd);
  napi_env const env = &environment;
  static std::mutex loading;
  {
    const std::lock_guard<std::mutex> lock(loading);
    if (dlopen(kModule, RTLD_NOW | RTLD_LOCAL) == nullptr) Fail(dlerror());
  }
  Check(the_module != nullptr && std::string(the_module->nm_modname) == "minicpmv",
        "the module has not registered itself");
  const auto exports = std::make_unique<napi_value__>();
  exports->type = kObject;
  Check(the_module->nm_register_func(env, exports.get()) == exports.get(), "no exports");
  std::vector<std::unique_ptr<napi_value__>> functions;
  for (auto& [name, value] : exports->properties) {
    functions.push_back(Keep(env, value));
    value = functions.back().get();
  }
  napi_value listener = env->New(napi_function);
  listener->script = [](napi_env env, napi_value line) {
    if (line->type == kNull) {
      env->has_ended = true;
    } else {
      env->WriteLine(line->text);
    }
  };
  const napi_value started = Call(env, exports->properties.at("start"), {listener});
  if (started == nullptr) {
    env->WriteLine("!thrown " + *env->thrown_code + " " + *env->thrown_message);
  } else {
    std::thread reader(ReadRequests, env, in_fd, exports.get(), started->number);
    RunLoop(env);
    shutdown(in_fd, SHUT_RD);  // of a socket; a pipe ends when its writer ends
    reader.join();
  }
  EndEnvironment(env);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int stand_in_main(int in_fd, int out_fd) {
  std::thread(RunScript, in_fd, out_fd).join();
  return 0;
}

EXPORT void napi_module_register(napi_module* module) { the_module = module; }

EXPORT napi_status napi_add_env_cleanup_hook(napi_env env, void (*hook)(void*), void* data) {
  env->CheckThread();
  env->hooks.emplace_back(hook, data);
  return napi_ok;
}

EXPORT napi_status napi_create_function(napi_env env, const char*, size_t length,
                                        napi_callback callback, void*, napi_value* result) {
  env->CheckThread();
  Check(length == NAPI_AUTO_LENGTH && callback != nullptr, "no function");
  *result = env->New(napi_function);
  (*result)->native = callback;
  return napi_ok;
}

EXPORT napi_status napi_set_named_property(napi_env env, napi_value object, const char* name,
                                           napi_value value) {
  env->CheckThread();
  Check(object->type == kObject, "no object");
  object->properties[name] = value;
  return napi_ok;
}

EXPORT napi_status napi_get_cb_info(napi_env env, napi_callback_info info, size_t* count,
                                    napi_value* arguments, napi_value*, void**) {
  env->CheckThread();
  for (size_t i = 0; i < *count; ++i) {
    arguments[i] = i < info->arguments.size() ? info->arguments[i] : env->New(kUndefined);
  }
  *count = info->arguments.size();
  return napi_ok;
}

EXPORT napi_status napi_throw_error(napi_env env, const char* code, const char* message) {
  env->CheckThread();
  Check(!env->thrown_code, "an error while another one is thrown");
  env->thrown_code = code;
  env->thrown_message = message;
  return napi_ok;
}

EXPORT napi_status napi_typeof(napi_env env, napi_value value, napi_valuetype* result) {
  env->CheckThread();
  *result = static_cast<napi_valuetype>(value->type);
  return napi_ok;
}

EXPORT napi_status napi_get_null(napi_env env, napi_value* result) {
  env->CheckThread();
  *result = env->New(kNull);
  return napi_ok;
}

EXPORT napi_status napi_get_undefined(napi_env env, napi_value* result) {
  env->CheckThread();
  *result = env->New(kUndefined);
  return napi_ok;
}

EXPORT napi_status napi_create_int32(napi_env env, int32_t value, napi_value* result) {
  env->CheckThread();
  *result = env->New(napi_number);
  (*result)->number = value;
  return napi_ok;
}

EXPORT napi_status napi_get_value_int32(napi_env env, napi_value value, int32_t* result) {
  env->CheckThread();
  Check(value->type == napi_number, "no number");
  *result = value->number;
  return napi_ok;
}

EXPORT napi_status napi_create_string_utf8(napi_env env, const char* text, size_t length,
                                           napi_value* result) {
  env->CheckThread();
  *result = env->New(napi_string);
  (*result)->text = length == NAPI_AUTO_LENGTH ? text : std::string(text, length);
  return napi_ok;
}

EXPORT napi_status napi_get_value_string_utf8(napi_env env, napi_value value, char* text,
                                              size_t length, size_t* result) {
  env->CheckThread();
  Check(value->type == napi_string, "no text");
  if (text == nullptr) {
    *result = value->text.size();
    return napi_ok;
  }
  *result = std::min(length - 1, value->text.size());
  std::memcpy(text, value->text.data(), *result);
  text[*result] = 0;
  return napi_ok;
}

EXPORT napi_status napi_call_function(napi_env env, napi_value receiver, napi_value function,
                                      size_t count, const napi_value* arguments, napi_value*) {
  env->CheckThread();
  Check(receiver != nullptr && count == 1 && function->script, "no call of a listener");
  function->script(env, arguments[0]);
  return napi_ok;
}

EXPORT napi_status napi_create_threadsafe_function(
    napi_env env, napi_value function, napi_value, napi_value resource_name, size_t, size_t threads,
    void*, napi_finalize, void* context, napi_threadsafe_function_call_js call_js,
    napi_threadsafe_function* result) {
  env->CheckThread();
  Check(resource_name->type == napi_string && threads == 1, "no way to JavaScript");
  const std::lock_guard<std::mutex> lock(env->mutex);
  env->ways.push_back(std::make_unique<napi_threadsafe_function__>());
  *result = env->ways.back().get();
  **result = {env, Keep(env, function).release(), context, call_js, threads, {}};
  return napi_ok;
}

EXPORT napi_status napi_call_threadsafe_function(napi_threadsafe_function function, void* data,
                                                 napi_threadsafe_function_call_mode mode) {
  Check(mode == napi_tsfn_nonblocking, "the module waits for JavaScript");
  const napi_env env = function->env;
  {
    const std::lock_guard<std::mutex> lock(env->mutex);
    Check(function->threads > 0, "a call after the release");
    function->queue.push_back(data);
  }
  env->Post([=] {
    void* first;
    {
      const std::lock_guard<std::mutex> lock(env->mutex);
      first = function->queue.front();
      function->queue.pop_front();
    }
    function->call_js(env, function->function, function->context, first);
  });
  return napi_ok;
}

EXPORT napi_status napi_release_threadsafe_function(napi_threadsafe_function function,
                                                    napi_threadsafe_function_release_mode mode) {
  Check(mode == napi_tsfn_release, "not the release that was meant");
  const std::lock_guard<std::mutex> lock(function->env->mutex);
  Check(function->threads-- > 0, "a second release");
  return napi_ok;
}
