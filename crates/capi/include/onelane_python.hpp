/// For Python extensions: takes onelane's functions from the Python package, so that C++ and Python
/// share the one owner of each device. Nothing has to be linked.
#pragma once

#include <Python.h>

#ifndef ONELANE_NO_LINK
#define ONELANE_NO_LINK
#endif
#include "onelane.hpp"

namespace onelane {

/// Imports the package and takes its table; call it when the extension is initialised, with the GIL.
/// On failure it returns false with a Python exception set.
inline bool import_api() noexcept {
  // The look-up of a capsule imports the package alone.
  PyObject *module = PyImport_ImportModule("onelane._onelane");
  if (module == nullptr) return false;
  Py_DECREF(module);
  const auto *api = static_cast<const onelane_api *const *>(
      PyCapsule_Import("onelane._onelane._C_API", 0));
  if (api == nullptr) return false;
  try {
    use_api(*api);
    return true;
  } catch (const std::exception &e) {
    PyErr_SetString(PyExc_ImportError, e.what());
    return false;
  }
}

}  // namespace onelane
