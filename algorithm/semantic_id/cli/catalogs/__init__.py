"""物品表的命令，一个命令一个文件：encode、decode、lookup、update、migrate、drift、import、export。"""
