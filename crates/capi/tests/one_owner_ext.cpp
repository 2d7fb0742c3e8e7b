// A Python extension for test_one_owner.py: C++ that asks for a device through the package's table.

#include "onelane_python.hpp"

#include <unistd.h>
#include <sys/syscall.h>

namespace {

/// ask(device) -> (executor's id, worker's thread id)
PyObject *ask(PyObject *, PyObject *args) {
  const char *device = nullptr;
  if (PyArg_ParseTuple(args, "s", &device) == 0) return nullptr;
  unsigned long long id = 0;
  long thread = 0;
  Py_BEGIN_ALLOW_THREADS
  const auto executor = onelane::DeviceExecutor::shared(device);
  id = executor.id();
  thread = executor.call([] { return static_cast<long>(syscall(SYS_gettid)); });
  Py_END_ALLOW_THREADS
  return Py_BuildValue("(Kl)", id, thread);
}

PyMethodDef methods[] = {{"ask", ask, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "one_owner_ext", nullptr, -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_one_owner_ext() {
  if (!onelane::import_api()) return nullptr;
  return PyModule_Create(&module);
}
