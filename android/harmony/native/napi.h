// What the module uses of Node-API, as HarmonyOS's libace_napi.z.so exports it. Declarations of our
// own: names, signatures and numbers are those of Node.js and of OpenHarmony's arkui_napi. `build.py`
// links a stub from the functions that are listed here.
#ifndef MINICPMV_HARMONY_NAPI_H_
#define MINICPMV_HARMONY_NAPI_H_

#include <cstddef>
#include <cstdint>

extern "C" {

using napi_env = struct napi_env__*;
using napi_value = struct napi_value__*;
using napi_callback_info = struct napi_callback_info__*;
using napi_threadsafe_function = struct napi_threadsafe_function__*;

using napi_callback = napi_value (*)(napi_env env, napi_callback_info info);
using napi_finalize = void (*)(napi_env env, void* data, void* hint);
// `env` is null if the environment ends: then only `data` may be freed.
using napi_threadsafe_function_call_js = void (*)(napi_env env, napi_value function, void* context,
                                                  void* data);

enum napi_status { napi_ok = 0 };
enum napi_valuetype { napi_number = 3, napi_string = 4, napi_function = 7 };
enum napi_threadsafe_function_release_mode { napi_tsfn_release = 0, napi_tsfn_abort = 1 };
enum napi_threadsafe_function_call_mode { napi_tsfn_nonblocking = 0, napi_tsfn_blocking = 1 };

constexpr size_t NAPI_AUTO_LENGTH = SIZE_MAX;

struct napi_module {
  int nm_version;
  unsigned int nm_flags;
  const char* nm_filename;
  napi_value (*nm_register_func)(napi_env env, napi_value exports);
  const char* nm_modname;  // of libNAME.so
  void* nm_priv;
  void* reserved[4];
};

void napi_module_register(napi_module* module);

napi_status napi_add_env_cleanup_hook(napi_env env, void (*hook)(void* data), void* data);

napi_status napi_create_function(napi_env env, const char* name, size_t length,
                                 napi_callback callback, void* data, napi_value* result);
napi_status napi_set_named_property(napi_env env, napi_value object, const char* name,
                                    napi_value value);
napi_status napi_get_cb_info(napi_env env, napi_callback_info info, size_t* count,
                             napi_value* arguments, napi_value* receiver, void** data);
napi_status napi_throw_error(napi_env env, const char* code, const char* message);

napi_status napi_typeof(napi_env env, napi_value value, napi_valuetype* result);
napi_status napi_get_null(napi_env env, napi_value* result);
napi_status napi_get_undefined(napi_env env, napi_value* result);
napi_status napi_create_int32(napi_env env, int32_t value, napi_value* result);
napi_status napi_get_value_int32(napi_env env, napi_value value, int32_t* result);
napi_status napi_create_string_utf8(napi_env env, const char* text, size_t length,
                                    napi_value* result);
// `length`: the size of `text`, which gets a final 0; `result`: the text's bytes. Both `text` and
// `result` may be null, but not at once.
napi_status napi_get_value_string_utf8(napi_env env, napi_value value, char* text, size_t length,
                                       size_t* result);
napi_status napi_call_function(napi_env env, napi_value receiver, napi_value function, size_t count,
                               const napi_value* arguments, napi_value* result);

napi_status napi_create_threadsafe_function(
    napi_env env, napi_value function, napi_value resource, napi_value resource_name,
    size_t max_queue_size, size_t threads, void* finalize_data, napi_finalize finalize,
    void* context, napi_threadsafe_function_call_js call_js, napi_threadsafe_function* result);
napi_status napi_call_threadsafe_function(napi_threadsafe_function function, void* data,
                                          napi_threadsafe_function_call_mode mode);
napi_status napi_release_threadsafe_function(napi_threadsafe_function function,
                                             napi_threadsafe_function_release_mode mode);

}  // extern "C"

#endif  // MINICPMV_HARMONY_NAPI_H_
