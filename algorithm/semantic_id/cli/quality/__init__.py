"""质量的命令，一个命令一个文件：evaluate、report。"""
