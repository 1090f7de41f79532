#include "userspace/base/error.h"
int allowed_edge;
