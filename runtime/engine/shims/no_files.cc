// TVM's VM can load programs from files. The engine runs only the program linked into it, so these
// two throw, and TVM's file_utils.cc is not needed.
#include <tvm/ffi/error.h>
#include <tvm/runtime/base.h>

#include <string>

namespace tvm {
namespace runtime {

void LoadBinaryFromFile(const std::string& file_name, std::string*) {
  TVM_FFI_THROW(RuntimeError) << file_name << ": programs are not loaded from files";
}

void SaveBinaryToFile(const std::string& file_name, const std::string&) {
  TVM_FFI_THROW(RuntimeError) << file_name << ": programs are not written to files";
}

}  // namespace runtime
}  // namespace tvm
