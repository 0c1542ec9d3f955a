// The module that ArkTS imports as `libminicpmv.so`; cpp/types/libminicpmv/Index.d.ts declares it.
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "android/harmony/native/connection.h"
#include "android/harmony/native/napi.h"

namespace minicpmv {
namespace {

// What the thread of JavaScript gets from a connection's.
struct Item {
  int32_t handle;
  bool is_end;
  std::string line;
};

void CallListener(napi_env env, napi_value listener, void* context, void* data);

// An engine that JavaScript has started.
class Engine final : public Connection::Listener {
 public:
  // Throws ModuleError.
  Engine(napi_env env, int32_t handle, napi_value listener)
      : env_(env), handle_(handle), function_(Create(env, listener)) {
    try {
      connection_ = std::make_unique<Connection>(this);
    } catch (...) {
      napi_release_threadsafe_function(function_, napi_tsfn_release);
      throw;
    }
  }

  napi_env env() const { return env_; }
  Connection& connection() { return *connection_; }

 private:
  static napi_threadsafe_function Create(napi_env env, napi_value listener) {
    napi_value name;
    napi_threadsafe_function function;
    if (napi_create_string_utf8(env, "minicpmv", NAPI_AUTO_LENGTH, &name) != napi_ok ||
        napi_create_threadsafe_function(env, listener, nullptr, name, 0, 1, nullptr, nullptr,
                                        nullptr, CallListener, &function) != napi_ok) {
      throw ModuleError(module_error::kOutOfMemory, "no way to this thread can be opened");
    }
    return function;
  }

  bool OnLine(std::string line) override { return Queue(false, std::move(line)); }

  void OnEnd() override {
    if (Queue(true, std::string())) napi_release_threadsafe_function(function_, napi_tsfn_release);
  }

  // Returns false if the environment ends: then its function must not be used any more.
  bool Queue(bool is_end, std::string line) {
    if (is_gone_) return false;
    auto item = std::make_unique<Item>(Item{handle_, is_end, std::move(line)});
    is_gone_ =
        napi_call_threadsafe_function(function_, item.get(), napi_tsfn_nonblocking) != napi_ok;
    if (!is_gone_) (void)item.release();
    return !is_gone_;
  }

  const napi_env env_;
  const int32_t handle_;
  const napi_threadsafe_function function_;
  bool is_gone_ = false;  // the connection's thread uses it alone
  std::unique_ptr<Connection> connection_;
};

// The engines of this process. More than one thread may have JavaScript.
class Engines {
 public:
  int32_t Start(napi_env env, napi_value listener) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int32_t handle = ++last_;
    engines_[handle] = std::make_shared<Engine>(env, handle, listener);
    return handle;
  }

  // Returns an engine of this environment.
  // Throws ModuleError (closed).
  std::shared_ptr<Engine> Get(napi_env env, int32_t handle) {
    const std::shared_ptr<Engine> found = Find(env, handle);
    if (found == nullptr) throw ModuleError(module_error::kClosed, "the engine has ended");
    return found;
  }

  // Returns an engine of this environment, or null.
  std::shared_ptr<Engine> Find(napi_env env, int32_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = engines_.find(handle);
    return found == engines_.end() || found->second->env() != env ? nullptr : found->second;
  }

  // Takes an engine out. It ends with the last use of what is returned.
  std::shared_ptr<Engine> Take(int32_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto node = engines_.extract(handle);
    return node.empty() ? nullptr : node.mapped();
  }

  // Ends the engines of an environment that ends.
  void End(napi_env env) {
    std::vector<std::shared_ptr<Engine>> ended;  // outside of the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto at = engines_.begin(); at != engines_.end();) {
      if (at->second->env() == env) {
        ended.push_back(at->second);
        at = engines_.erase(at);
      } else {
        ++at;
      }
    }
  }

 private:
  std::mutex mutex_;
  std::map<int32_t, std::shared_ptr<Engine>> engines_;
  int32_t last_ = 0;
};

Engines& TheEngines() {
  static Engines* const engines = new Engines;  // engines may end after static objects
  return *engines;
}

// Brings a line, or the end, to JavaScript's listener; on its thread.
void CallListener(napi_env env, napi_value listener, void*, void* data) {
  const std::unique_ptr<Item> item(static_cast<Item*>(data));
  if (env == nullptr) return;
  const std::shared_ptr<Engine> engine = TheEngines().Find(env, item->handle);
  if (engine == nullptr) return;
  napi_value receiver, argument, result;
  if (item->is_end) {
    TheEngines().Take(item->handle);
    napi_get_null(env, &argument);
  } else {
    napi_create_string_utf8(env, item->line.data(), item->line.size(), &argument);
  }
  napi_get_undefined(env, &receiver);
  // What the listener throws is JavaScript's to report.
  (void)napi_call_function(env, receiver, listener, 1, &argument, &result);
  if (!item->is_end) engine->connection().Taken(item->line.size());
}

// The arguments of a call, of the types that are expected.
// Throws ModuleError (invalid_argument).
std::vector<napi_value> Arguments(napi_env env, napi_callback_info info,
                                  const std::vector<napi_valuetype>& types, const char* expected) {
  std::vector<napi_value> values(types.size() + 1);
  size_t count = values.size();
  napi_get_cb_info(env, info, &count, values.data(), nullptr, nullptr);
  bool is_right = count == types.size();
  for (size_t i = 0; is_right && i < types.size(); ++i) {
    napi_valuetype type;
    is_right = napi_typeof(env, values[i], &type) == napi_ok && type == types[i];
  }
  if (!is_right) {
    throw ModuleError(module_error::kInvalidArgument, std::string("expected ") + expected);
  }
  return values;
}

int32_t Handle(napi_env env, napi_value value) {
  int32_t handle = 0;
  napi_get_value_int32(env, value, &handle);
  return handle;
}

std::string Text(napi_env env, napi_value value) {
  size_t size = 0;
  napi_get_value_string_utf8(env, value, nullptr, 0, &size);
  std::string text(size + 1, '\0');
  napi_get_value_string_utf8(env, value, text.data(), text.size(), &size);
  text.resize(size);
  return text;
}

napi_value Start(napi_env env, napi_callback_info info) {
  const auto arguments = Arguments(env, info, {napi_function}, "start(listener)");
  napi_value result;
  napi_create_int32(env, TheEngines().Start(env, arguments[0]), &result);
  return result;
}

napi_value Send(napi_env env, napi_callback_info info) {
  const auto arguments =
      Arguments(env, info, {napi_number, napi_string}, "send(engine, request)");
  TheEngines().Get(env, Handle(env, arguments[0]))->connection().Send(Text(env, arguments[1]));
  return nullptr;
}

napi_value Close(napi_env env, napi_callback_info info) {
  const auto arguments = Arguments(env, info, {napi_number}, "close(engine)");
  const auto engine = TheEngines().Find(env, Handle(env, arguments[0]));
  if (engine != nullptr) engine->connection().Close();
  return nullptr;
}

// A call of JavaScript: what it throws arrives there, with its name in `code`.
template <napi_value (*kCall)(napi_env, napi_callback_info)>
napi_value Guarded(napi_env env, napi_callback_info info) {
  try {
    return kCall(env, info);
  } catch (const ModuleError& error) {
    napi_throw_error(env, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    napi_throw_error(env, module_error::kOutOfMemory, "not enough memory");
  }
  return nullptr;
}

template <napi_value (*kCall)(napi_env, napi_callback_info)>
void Export(napi_env env, napi_value exports, const char* name) {
  napi_value function;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, Guarded<kCall>, nullptr, &function) ==
      napi_ok) {
    napi_set_named_property(env, exports, name, function);
  }
}

void EndEnvironment(void* env) { TheEngines().End(static_cast<napi_env>(env)); }

napi_value Initialize(napi_env env, napi_value exports) {
  Export<Start>(env, exports, "start");
  Export<Send>(env, exports, "send");
  Export<Close>(env, exports, "close");
  napi_add_env_cleanup_hook(env, EndEnvironment, env);
  return exports;
}

napi_module the_module = {1, 0, nullptr, Initialize, "minicpmv", nullptr, {}};

}  // namespace
}  // namespace minicpmv

// Runs when the file is loaded.
extern "C" __attribute__((visibility("default"), constructor)) void RegisterMinicpmvModule() {
  napi_module_register(&minicpmv::the_module);
}
