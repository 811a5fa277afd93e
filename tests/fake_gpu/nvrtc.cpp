// FAKE libnvrtc: test code. It "compiles" a source by noting its name; the fake driver runs the same source
// compiled for the CPU.
#include <cstring>
#include <string>

struct Program {
    std::string name, text, log, code;
};
#define API extern "C" __attribute__((visibility("default"))) int

API nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
API nvrtcGetNumSupportedArchs(int* n) { *n = 3; return 0; }
API nvrtcGetSupportedArchs(int* archs) { archs[0] = 80; archs[1] = 90; archs[2] = 100; return 0; }
extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int) { return "FAKE_NVRTC_ERROR"; }
API nvrtcCreateProgram(void** p, const char* text, const char* name, int, const char* const*, const char* const*) {
    *p = new Program{name, text, "", ""};
    return 0;
}
API nvrtcDestroyProgram(void** p) { delete (Program*)*p; *p = nullptr; return 0; }
API nvrtcCompileProgram(void* p, int n, const char* const* options) {
    Program* program = (Program*)p;
    if (program->text.find("#error") != std::string::npos) {
        program->log = program->name + "(1): error: #error";
        return 6;
    }
    program->code = "FAKE " + program->name;
    for (int i = 0; i < n; ++i) program->code += std::string(" ") + options[i];
    return 0;
}
API nvrtcGetProgramLogSize(void* p, size_t* n) { *n = ((Program*)p)->log.size() + 1; return 0; }
API nvrtcGetProgramLog(void* p, char* to) { strcpy(to, ((Program*)p)->log.c_str()); return 0; }
API nvrtcGetCUBINSize(void* p, size_t* n) { *n = ((Program*)p)->code.size() + 1; return 0; }
API nvrtcGetCUBIN(void* p, char* to) { strcpy(to, ((Program*)p)->code.c_str()); return 0; }
API nvrtcGetPTXSize(void* p, size_t* n) { return nvrtcGetCUBINSize(p, n); }
API nvrtcGetPTX(void* p, char* to) { return nvrtcGetCUBIN(p, to); }
