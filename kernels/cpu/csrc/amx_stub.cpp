#include "backend.h"
namespace ebb { const Backend* amx_backend() { return nullptr; } }
