/* A libnvidia-ml.so.1 for tests: the few functions that Brimline calls, answering from a file.
 *
 * FAKE_NVML_STATE names a file of KEY=VALUE lines, read anew by every call (replace the file, do not write into it):
 *   count=2  driver=570.1  total=  used=  reserved=  name=  uuid=  power_limit=700000
 *                         any from total on also with .DEVICE; without a power_limit (milliwatts) there is none
 *   mig.0=2               MIG is on for GPU 0, with two instances
 *   pids.DEVICE=12,34     compute processes; graphics_pids.DEVICE= likewise; pid_memory.12=  its bytes
 *   err.FUNCTION[.DEVICE]=CODE     hang.FUNCTION[.DEVICE]=SECONDS (ends early when the line goes)
 *   lost_until_init.0=1   GPU 0 is lost from now on until the library is initialised again
 * DEVICE is 0, or 0.1 for the second MIG instance of GPU 0. FUNCTION is the exported name, or that name without
 * its _v2 or _v3. FAKE_NVML_CALLS names a file that gets a line `FUNCTION DEVICE` for every call.
 *
 * -DWITHOUT_MEMORY_V2   an old driver: no nvmlDeviceGetMemoryInfo_v2
 * -DINIT_RESULT=18      a build whose nvmlInit always fails so
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };

#ifndef INIT_RESULT
#define INIT_RESULT OK
#endif

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process;

static int references, initialisations;
static int lost_at[64]; /* the initialisation during which a GPU got lost, with lost_until_init */

static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;

static char content[32768];

/* Read the state file again where it was replaced. */
static void look(void) {
    static struct stat known;
    struct stat now;
    const char *path = getenv("FAKE_NVML_STATE");
    if (!path || stat(path, &now)) return;
    pthread_mutex_lock(&reading);
    if (now.st_ino != known.st_ino || now.st_mtim.tv_sec != known.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != known.st_mtim.tv_nsec || now.st_size != known.st_size) {
        FILE *file = fopen(path, "r");
        if (file) {
            content[fread(content, 1, sizeof content - 1, file)] = 0;
            /* Of the file that was read, should it have been replaced meanwhile. */
            if (fstat(fileno(file), &known)) abort();
            fclose(file);
        }
    }
    pthread_mutex_unlock(&reading);
}

/* The value of KEY in the state file; 0 where it has none. */
static int value_of(const char *key, char *value, size_t size) {
    size_t length = strlen(key);
    int found = 0;
    pthread_mutex_lock(&reading);
    for (const char *line = content, *end; *line && !found; line = *end ? end + 1 : end) {
        end = line + strcspn(line, "\n");
        if ((size_t)(end - line) > length && !strncmp(line, key, length) && line[length] == '=') {
            snprintf(value, size, "%.*s", (int)(end - line - (long)length - 1), line + length + 1);
            found = 1;
        }
    }
    pthread_mutex_unlock(&reading);
    return found;
}

/* KEY.DEVICE, else KEY. */
static int device_value(const char *key, const char *device, char *value, size_t size) {
    char both[160];
    snprintf(both, sizeof both, "%s.%s", key, device);
    return (*device && value_of(both, value, size)) || value_of(key, value, size);
}

static unsigned long long number(const char *key, const char *device, unsigned long long otherwise) {
    char value[64];
    return device_value(key, device, value, sizeof value) ? strtoull(value, NULL, 10) : otherwise;
}

/* err. or hang. of a function, by its full name and by the one without version. */
static int fault(const char *kind, const char *function, const char *device, char *value, size_t size) {
    char key[160];
    size_t length = strlen(function);
    snprintf(key, sizeof key, "%s.%s", kind, function);
    if (device_value(key, device, value, size)) return 1;
    if (length > 3 && function[length - 3] == '_' && function[length - 2] == 'v') {
        snprintf(key, sizeof key, "%s.%.*s", kind, (int)(length - 3), function);
        return device_value(key, device, value, size);
    }
    return 0;
}

/* What every function does first: be counted, hang, fail. */
static int enter(const char *function, const char *device) {
    char value[64], line[160];
    const char *calls = getenv("FAKE_NVML_CALLS");
    if (calls) {
        int file = open(calls, O_WRONLY | O_APPEND | O_CREAT, 0600);
        int length = snprintf(line, sizeof line, "%s %s\n", function, device);
        if (file >= 0) {
            if (write(file, line, (size_t)length) != length) abort();
            close(file);
        }
    }
    double waited = 0;
    look();
    while (fault("hang", function, device, value, sizeof value) && waited < strtod(value, NULL)) {
        struct timespec pause = {0, 10000000};
        nanosleep(&pause, NULL);
        waited += 0.01;
        look();
    }
    return fault("err", function, device, value, sizeof value) ? atoi(value) : OK;
}

/* A handle holds the initialisation it was taken in, the GPU and, for a MIG instance, its number + 1. */
static void *handle_of(unsigned gpu, unsigned instance) {
    return (void *)(((uintptr_t)initialisations << 32) | ((uintptr_t)instance << 16) | (gpu + 1));
}

static int enter_device(const char *function, void *handle, char *device) {
    uintptr_t bits = (uintptr_t)handle;
    unsigned gpu = (unsigned)(bits & 0xffff) - 1, instance = (unsigned)(bits >> 16) & 0xffff;
    char index[16];
    snprintf(index, sizeof index, "%u", gpu);
    if (instance) snprintf(device, 16, "%u.%u", gpu, instance - 1);
    else snprintf(device, 16, "%u", gpu);
    int result = enter(function, device);
    if (result) return result;
    if (!references) return UNINITIALIZED;
    if (!number("lost_until_init", index, 0)) lost_at[gpu % 64] = 0;
    else if (!lost_at[gpu % 64]) lost_at[gpu % 64] = initialisations;
    if (lost_at[gpu % 64] == initialisations) return GPU_IS_LOST;
    if ((bits >> 32) != (uintptr_t)initialisations || gpu >= number("count", "", 0)) return INVALID_ARGUMENT;
    return instance > number("mig", index, 0) ? NOT_FOUND : OK;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int result = enter("nvmlInitWithFlags", "");
    if (result) return result;
    if (INIT_RESULT) return INIT_RESULT;
    references++;
    initialisations++;
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    int result = enter("nvmlShutdown", "");
    if (result) return result;
    if (!references) return UNINITIALIZED;
    references--;
    return OK;
}

const char *nvmlErrorString(int code) { (void)code; return "an error of the fake"; }

static int text(const char *key, const char *device, const char *otherwise, char *out, unsigned size) {
    char value[96];
    snprintf(out, size, "%s", device_value(key, device, value, sizeof value) ? value : otherwise);
    return OK;
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    int result = enter("nvmlSystemGetDriverVersion", "");
    if (result) return result;
    return references ? text("driver", "", "570.1", out, size) : UNINITIALIZED;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int result = enter("nvmlDeviceGetCount_v2", "");
    if (result) return result;
    if (!references) return UNINITIALIZED;
    *count = (unsigned)number("count", "", 0);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned gpu, void **handle) {
    char device[16];
    *handle = handle_of(gpu, 0);
    return enter_device("nvmlDeviceGetHandleByIndex_v2", *handle, device);
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    char device[16], otherwise[64];
    int result = enter_device("nvmlDeviceGetUUID", handle, device);
    if (result) return result;
    snprintf(otherwise, sizeof otherwise, "%s-fake-%s", strchr(device, '.') ? "MIG" : "GPU", device);
    return text("uuid", device, otherwise, out, size);
}

int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    char device[16];
    int result = enter_device("nvmlDeviceGetName", handle, device);
    return result ? result : text("name", device, "Fake GPU", out, size);
}

static memory_v2 memory_of(const char *device) {
    memory_v2 memory = {0x02000028, number("total", device, 0), number("reserved", device, 0), 0, number("used", device, 0)};
    memory.free = memory.total - memory.used - memory.reserved;
    return memory;
}

/* As the driver has it: the used of v1 holds the reserved too. */
int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *out) {
    char device[16];
    int result = enter_device("nvmlDeviceGetMemoryInfo", handle, device);
    if (result) return result;
    memory_v2 memory = memory_of(device);
    out->total = memory.total;
    out->free = memory.free;
    out->used = memory.used + memory.reserved;
    return OK;
}

#ifndef WITHOUT_MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *out) {
    char device[16];
    int result = enter_device("nvmlDeviceGetMemoryInfo_v2", handle, device);
    if (result) return result;
    if (out->version != 0x02000028) return VERSION_MISMATCH;
    *out = memory_of(device);
    return OK;
}
#endif

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) {
    char device[16];
    int result = enter_device("nvmlDeviceGetEnforcedPowerLimit", handle, device);
    if (result) return result;
    *milliwatts = (unsigned)number("power_limit", device, 0);
    return *milliwatts ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    char device[16], key[32], value[16];
    int result = enter_device("nvmlDeviceGetMigMode", handle, device);
    if (result) return result;
    snprintf(key, sizeof key, "mig.%s", device);
    if (!value_of(key, value, sizeof value)) return NOT_SUPPORTED;
    *current = *pending = 1;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    char device[16];
    int result = enter_device("nvmlDeviceGetMaxMigDeviceCount", handle, device);
    *count = 7;
    return result;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned instance, void **out) {
    unsigned gpu = (unsigned)((uintptr_t)handle & 0xffff) - 1;
    char device[16];
    *out = handle_of(gpu, instance + 1);
    return enter_device("nvmlDeviceGetMigDeviceHandleByIndex", *out, device);
}

static int processes(const char *function, const char *key, void *handle, unsigned *count, process *out) {
    char device[16], full[32], value[256] = "";
    unsigned listed = 0, room = *count;
    int result = enter_device(function, handle, device);
    if (result) return result;
    snprintf(full, sizeof full, "%s.%s", key, device);
    value_of(full, value, sizeof value);
    for (char *rest = NULL, *pid = strtok_r(value, ",", &rest); pid; pid = strtok_r(NULL, ",", &rest)) {
        char memory_key[48], memory[32] = "";
        snprintf(memory_key, sizeof memory_key, "pid_memory.%s", pid);
        value_of(memory_key, memory, sizeof memory);
        process found = {(unsigned)atoi(pid), *memory ? strtoull(memory, NULL, 10) : ~0ull, ~0u, ~0u};
        if (out && listed < room) out[listed] = found;
        listed++;
    }
    *count = listed;
    return listed > room ? INSUFFICIENT_SIZE : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *out) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", "pids", handle, count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process *out) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", "graphics_pids", handle, count, out);
}
