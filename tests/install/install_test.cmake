cmake_minimum_required(VERSION 3.25)
# Installs the build tree into a temporary folder, and builds and runs programs that know nothing but that folder.
# usage: cmake -DSOURCE= -DBUILD= -DCC= -DCXX= -DGENERATOR= -DSANITIZE= -DBUILD_TYPE= -P install_test.cmake
string(RANDOM LENGTH 8 suffix)
if(DEFINED ENV{TMPDIR})
  set(temporary $ENV{TMPDIR})
else()
  set(temporary /tmp)
endif()
set(work ${temporary}/pecan-install-${suffix})
set(prefix ${work}/moved)

# Ends the test; the folder goes in any case.
macro(fail text)
  file(REMOVE_RECURSE ${work})
  message(FATAL_ERROR "${text}")
endmacro()

# run(WHAT command...): output in `output`, the test fails on another exit code than 0.
macro(run what)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    fail("${what}: exit code ${code}\n${output}${errors}")
  endif()
endmacro()

# The prefix is moved after the installation: nothing may hold the path that it was made for.
run("cmake --install" ${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/installed)
file(RENAME ${work}/installed ${prefix})

foreach(file bin/pecan-train bin/pecan-plan bin/pecan-data bin/pecan-inspect bin/pecan-launch bin/pecan-convert include/pecan/core/error.hpp
        include/pecan/train/plan.hpp share/pecan/configs/quickstart.yaml share/doc/pecan/LICENSE
        share/doc/pecan/docs/configuration.md)
  if(NOT EXISTS ${prefix}/${file})
    fail("${file} is not installed")
  endif()
endforeach()

# Every public header and nothing else of the sources.
file(GLOB_RECURSE public RELATIVE ${SOURCE}/include ${SOURCE}/include/*.hpp)
file(GLOB_RECURSE installed RELATIVE ${prefix}/include ${prefix}/include/*)
if(NOT public STREQUAL installed)
  fail("the installed headers are not those of include/:\n${installed}")
endif()

# Neither texts nor libraries nor programs name the machine that built them.
file(GLOB_RECURSE files ${prefix}/*)
set(num_files 0)
foreach(file IN LISTS files)
  foreach(folder ${SOURCE} ${BUILD} ${work}/installed)
    execute_process(COMMAND grep -c -F -e "${folder}/" ${file} OUTPUT_VARIABLE count OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(NOT count EQUAL 0)
      fail("${file} holds the path ${folder} ${count} times")
    endif()
  endforeach()
  math(EXPR num_files "${num_files} + 1")
endforeach()
if(num_files LESS 60)
  fail("only ${num_files} files were installed")
endif()

set(flags "")
if(SANITIZE)
  set(flags -fsanitize=${SANITIZE})
endif()
foreach(project consumer config_only)
  file(COPY ${CMAKE_CURRENT_LIST_DIR}/${project} DESTINATION ${work})
  run("configuring ${project}" ${CMAKE_COMMAND} -S ${work}/${project} -B ${work}/${project}/build -G ${GENERATOR}
      -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_C_COMPILER=${CC} -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_BUILD_TYPE=${BUILD_TYPE}
      -DCMAKE_CXX_FLAGS=${flags})
  run("building ${project}" ${CMAKE_COMMAND} --build ${work}/${project}/build)
endforeach()

# Mixtral-8x7B: its published parameter counts are the oracle.
file(WRITE ${work}/mixtral.yaml "
model: {num_layers: 32, hidden_size: 4096, num_attention_heads: 32, num_query_groups: 8, vocab_size: 32000,
        untie_embeddings_and_output_weights: true}
moe: {num_experts: 8, moe_ffn_hidden_size: 14336, moe_router_topk: 2, moe_layer_freq: 1}
parallel: {expert_model_parallel_size: 8}
")
run("running totals" ${work}/consumer/build/totals ${work}/mixtral.yaml 8)
if(NOT output STREQUAL "total 46702792704\nactive 12879925248\nranks 8\n")
  fail("totals printed\n${output}")
endif()
run("running keys" ${work}/config_only/build/keys)
if(NOT output STREQUAL "ffn_hidden_size 384\n")
  fail("keys printed\n${output}")
endif()

# The installed program stands by itself too.
run("running the installed pecan-plan" ${prefix}/bin/pecan-plan --config ${work}/mixtral.yaml --world 8 --json)
if(NOT output MATCHES "46702792704")
  fail("the installed pecan-plan printed\n${output}")
endif()

# What cannot be found is said with names.
file(WRITE ${work}/wrong/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)\nproject(wrong CXX)\n
find_package(pecan REQUIRED COMPONENTS \${COMPONENT})\n")
foreach(case_text "engine|no component 'engine'" "train|LANGUAGES C CXX")
  string(REPLACE "|" ";" case_text "${case_text}")
  list(GET case_text 0 component)
  list(GET case_text 1 text)
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${work}/wrong -B ${work}/wrong/${component} -DCOMPONENT=${component}
                          -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_CXX_COMPILER=${CXX} -G ${GENERATOR}
                  OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE code)
  if(code EQUAL 0 OR NOT errors MATCHES "${text}")
    fail("find_package(pecan COMPONENTS ${component}) does not say \"${text}\" (exit code ${code}):\n${errors}")
  endif()
endforeach()

# The other way to embed: as a subfolder, which brings the same target names, and neither tests nor install rules.
file(WRITE ${work}/embedded/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)\nproject(embedded C CXX)\n
add_subdirectory(\"${SOURCE}\" pecan)\nadd_executable(totals \"${work}/consumer/totals.cpp\")
target_link_libraries(totals PRIVATE pecan::train)\nif(TARGET core_test)\nmessage(FATAL_ERROR tests)\nendif()\n")
run("configuring with add_subdirectory" ${CMAKE_COMMAND} -S ${work}/embedded -B ${work}/embedded/build -G ${GENERATOR}
    -DCMAKE_C_COMPILER=${CC} -DCMAKE_CXX_COMPILER=${CXX})
if(EXISTS ${work}/embedded/build/pecan/package)
  fail("pecan as a subfolder makes install rules for its host")
endif()
file(REMOVE_RECURSE ${work})
message(STATUS "${num_files} files installed; two projects built against them")
